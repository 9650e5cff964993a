"""The distillation loss: by hand, at its ends, and the size of its gradient."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nmt_ls.losses import distillation_loss, projected_distillation_loss, smoothness_index


def test_an_example_by_hand() -> None:
    """At T = 2 the student has p = (2/3, 1/3), the teacher (3/4, 1/4)."""
    student = torch.tensor([[2 * math.log(2.0), 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[2 * math.log(3.0), 0.0]], dtype=torch.float64)
    label = torch.tensor([1])
    soft = -(0.75 * math.log(2 / 3) + 0.25 * math.log(1 / 3))
    hard = -math.log(1 / 3)
    loss = distillation_loss(student, teacher, label, beta=0.6, teacher_temperature=2.0)
    assert loss.item() == pytest.approx(0.4 * hard + 0.6 * soft)
    scaled = distillation_loss(student, teacher, label, 0.6, 2.0, squared_temperature_factor=True)
    assert scaled.item() == pytest.approx(0.4 * hard + 0.6 * 4 * soft)
    # at a temperature of 1 the student has p = (4/5, 1/5)
    cool = distillation_loss(student, teacher, label, 0.6, 2.0, student_temperature=1.0)
    assert cool.item() == pytest.approx(-0.4 * math.log(0.2) - 0.6 * (0.75 * math.log(0.8) + 0.25 * math.log(0.2)))


def test_its_ends() -> None:
    torch.manual_seed(1)
    student, teacher = torch.randn(2, 20, 7, dtype=torch.float64)
    targets = torch.randint(7, (20,))
    hard = distillation_loss(student, teacher, targets, 0.0, 3.0)
    torch.testing.assert_close(hard, F.cross_entropy(student / 3, targets))
    soft = distillation_loss(student, teacher, targets, 1.0, 3.0)
    torch.testing.assert_close(soft, F.cross_entropy(student / 3, (teacher / 3).softmax(1)))


def test_no_gradient_where_student_equals_teacher_and_none_for_the_teacher() -> None:
    torch.manual_seed(1)
    teacher = torch.randn(20, 7, dtype=torch.float64, requires_grad=True)
    student = teacher.detach().clone().requires_grad_()
    distillation_loss(student, teacher, torch.randint(7, (20,)), 1.0, 3.0).backward()
    assert teacher.grad is None
    assert student.grad.abs().max() < 1e-15


def test_the_factor_keeps_the_gradient_as_temperatures_grow() -> None:
    """At high temperatures the gradient is (z_student - z_teacher) / (K·T_t·T_s) for centred logits."""
    torch.manual_seed(1)
    student, teacher = (logits - logits.mean(1, keepdim=True) for logits in torch.randn(2, 5, 4, dtype=torch.float64))
    for student_temperature in (1000.0, 4000.0):
        given = student.clone().requires_grad_()
        distillation_loss(
            given, teacher, torch.zeros(5, dtype=torch.long), 1.0, 1000.0, student_temperature, True
        ).backward()
        limit = (student * 1000 / student_temperature - teacher) / 4 / 5
        torch.testing.assert_close(given.grad, limit, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"beta": 1.1}, "beta must lie in"),
        ({"beta": float("nan")}, "beta must lie in"),
        ({"teacher_temperature": 0.0}, "temperatures must be positive"),
        ({"student_temperature": -1.0}, "temperatures must be positive"),
        ({"teacher_logits_NK": torch.zeros(2, 4)}, "matrices of one shape"),
        ({"targets_N": torch.tensor([0, 3])}, r"targets must lie in \[0, 3\): row 1 is 3"),
        ({"targets_N": torch.tensor([-100, 1])}, "row 0 is -100"),
    ],
)
def test_mistakes_are_named(changed: dict[str, Any], message: str) -> None:
    good = {
        "student_logits_NK": torch.zeros(2, 3),
        "teacher_logits_NK": torch.zeros(2, 3),
        "targets_N": torch.tensor([0, 1]),
        "beta": 0.5,
        "teacher_temperature": 2.0,
    }
    with pytest.raises(ValueError, match=message):
        distillation_loss(**{**good, **changed})


def test_smoothness_index_of_smoothed_labels_is_alpha() -> None:
    labels = torch.tensor([0, 3, 4, 1])
    targets = 0.7 * F.one_hot(labels, 5).double() + 0.3 / 5
    assert smoothness_index(targets.log(), labels) == pytest.approx(0.3)
    assert smoothness_index(torch.zeros(4, 5), labels) == pytest.approx(1.0)
    # at T = 2 of (4, 1)/5, which becomes (2, 1)/3; with two classes the factor K/(K - 1) is 2
    assert smoothness_index(torch.tensor([[4.0, 1.0]]).log(), torch.tensor([0]), 2.0) == pytest.approx(2 / 3)


@pytest.mark.parametrize("options", [(1.0, 1.0, None, False), (0.7, 3.0, None, True), (0.4, 2.0, 1.0, False)])
def test_of_projections_it_is_the_same_in_pieces(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value, gradients, rows left out: against the plain loss of all logits; the last piece is smaller."""
    monkeypatch.setattr("nmt_ls.losses._DISTILLED_LOGITS", (0, 3 * 7 + 5))
    torch.manual_seed(1)
    hidden, weight = (torch.randn(size, 4, dtype=torch.float64, requires_grad=True) for size in (10, 7))
    teacher_hidden, teacher_weight = (torch.randn(size, 6, dtype=torch.float64, requires_grad=True) for size in (10, 7))
    targets = torch.tensor([1, 0, 6, 0, 2, 3, 0, 5, 4, 1])
    kept = targets != 0
    total, nll = projected_distillation_loss(
        hidden, weight, teacher_hidden, teacher_weight, targets, *options, ignore_index=0
    )
    logits = (hidden @ weight.T)[kept]
    expected = kept.sum() * distillation_loss(
        logits, (teacher_hidden @ teacher_weight.T)[kept].detach(), targets[kept], *options
    )
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(nll, F.cross_entropy(logits, targets[kept], reduction="sum"))
    assert not nll.requires_grad
    found, wanted = (torch.autograd.grad(loss, (hidden, weight), retain_graph=True) for loss in (total, expected))
    torch.testing.assert_close(found, wanted)
    total.backward()
    assert teacher_hidden.grad is None
    assert teacher_weight.grad is None


def test_of_no_tokens_it_is_nothing() -> None:
    hidden, weight, targets = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4), torch.zeros(3).long()
    total, nll = projected_distillation_loss(hidden, weight, hidden, weight, targets, 1.0, 1.0, ignore_index=0)
    assert (total, nll) == (0, 0)
    total.backward()
    assert hidden.grad.abs().sum() == 0


def test_of_autocast_it_is_the_same_but_for_rounding() -> None:
    torch.manual_seed(1)
    hidden, weight = (torch.randn(size, 16, requires_grad=True) for size in (40, 30))
    teacher, labels = torch.randn(40, 16), torch.randint(30, (40,))
    losses = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            total, nll = projected_distillation_loss(hidden, weight, teacher, weight.detach(), labels, 0.8, 2.0)
        losses.append((total, nll, *torch.autograd.grad(total, (hidden, weight))))
    assert losses[1][0].dtype == losses[1][2].dtype == torch.float32
    for plain, rounded in zip(*losses, strict=True):
        assert (rounded - plain).norm() < 0.02 * plain.norm()
        assert (rounded - plain).norm() > 0


def test_projections_that_do_not_fit() -> None:
    states, weight, targets = torch.randn(3, 4), torch.randn(5, 4), torch.zeros(3).long()
    with pytest.raises(ValueError, match="hidden has width 4, but weight has width 6"):
        projected_distillation_loss(states, weight, states, torch.randn(5, 6), targets, 1.0, 1.0)
    with pytest.raises(ValueError, match="3 rows of the student's, but 2 of the teacher's"):
        projected_distillation_loss(states, weight, states[:2], weight, targets, 1.0, 1.0)
    with pytest.raises(ValueError, match="student and teacher must be matrices of one shape"):
        projected_distillation_loss(states, weight, states, torch.randn(6, 4), targets, 1.0, 1.0)
