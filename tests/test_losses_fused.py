"""The fused loss beyond its values: chunk borders, narrow products, padding, autograd's rules, memory, precision."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nmt_ls import losses_fused
from nmt_ls.experiment.processor import this_processor
from nmt_ls.losses import fused_loss_and_nll, fused_smoothed_cross_entropy, smoothed_cross_entropy

OPTIONS = [(0.1, "all"), (0.3, "others"), (0.0, "all")]
SHAPES = [(1, 2), (16, 5), (17, 64), (70, 65), (33, 200)]


@pytest.fixture
def tiny_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks and tiles for small tensors, and ones that do not divide them."""
    monkeypatch.setattr(losses_fused, "_SMALLEST_CHUNK", 1)
    monkeypatch.setattr(losses_fused, "_FEWEST_ROWS", 16)
    monkeypatch.setattr(losses_fused, "_SMALLEST_TILE", 1)
    monkeypatch.setattr(losses_fused, "_WIDENED_ROWS", 7)
    monkeypatch.setattr(losses_fused, "_FEWEST_BLOCK_ROWS", 4)


def make(rows: int, classes: int, width: int, ignored: float = 0.2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weight, targets of which some are ignored, a prior: in float64, but exact in bfloat16."""
    generator = torch.Generator().manual_seed(rows + classes)
    hidden = torch.randn(rows, width, generator=generator).bfloat16().double()
    weight = torch.randn(classes, width, generator=generator).bfloat16().double()
    targets = torch.randint(classes, (rows,), generator=generator)
    targets[torch.rand(rows, generator=generator) < ignored] = -100
    prior = torch.rand(classes, generator=generator, dtype=torch.float64) + 0.01
    return hidden, weight, targets, prior / prior.sum()


def solved(loss: Callable[..., Tensor], hidden: Tensor, weight: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """A loss and its gradients."""
    hidden, weight = hidden.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    value = loss(hidden, weight, *options)
    value.backward()
    return value.detach(), hidden.grad, weight.grad


def plain(hidden: Tensor, weight: Tensor, *options: Any) -> Tensor:
    return smoothed_cross_entropy(hidden @ weight.T, *options)


def relative_errors(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> list[float]:
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)]


@pytest.mark.usefixtures("tiny_chunks")
@pytest.mark.parametrize(("alpha", "spread"), OPTIONS)
@pytest.mark.parametrize(("rows", "classes"), SHAPES)
def test_borders_of_chunks_and_tiles(rows: int, classes: int, alpha: float, spread: str) -> None:
    hidden, weight, targets, prior = make(rows, classes, 3)
    expected = solved(plain, hidden, weight, targets, alpha, prior, spread)
    fused = solved(fused_smoothed_cross_entropy, hidden, weight, targets, alpha, prior, spread)
    torch.testing.assert_close(fused, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("tiny_chunks")
@pytest.mark.parametrize(("alpha", "spread"), OPTIONS)
@pytest.mark.parametrize(("rows", "classes"), SHAPES)
def test_products_narrower_than_sums(rows: int, classes: int, alpha: float, spread: str) -> None:
    """The ways that bfloat16 goes, with float32 products and float64 sums in their place: nothing is left to chance."""
    hidden, weight, targets, prior = make(rows, classes, 3)
    expected = solved(plain, hidden, weight, targets, alpha, prior, spread)
    rows_M = (targets != -100).nonzero()[:, 0]
    labels_M = targets[rows_M]
    prior_mass_M = torch.full((len(rows_M),), alpha, dtype=torch.float64)
    if spread == "others":
        prior_mass_M /= 1 - prior[labels_M]
    problem = losses_fused.Problem(
        rows=rows_M,
        labels=labels_M,
        label_mass=1 - prior_mass_M,
        prior_mass=prior_mass_M,
        prior=prior,
        scale=1 / max(len(rows_M), 1),
        compute_dtype=torch.float32,
    )
    for wide_weight in (True, False):
        given = weight if wide_weight else weight.float()
        found = losses_fused.solve(hidden.float(), given, problem, True, True)
        assert found[3].dtype == given.dtype
        torch.testing.assert_close([found[0], *found[2:]], list(expected), rtol=3e-5, atol=1e-6, check_dtype=False)
        without_gradients = losses_fused.solve(hidden.float(), given, problem, False, False)
        assert without_gradients[2:] == (None, None)
        torch.testing.assert_close(without_gradients[:2], found[:2], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradcheck(reduction: str) -> None:
    hidden, weight, targets, prior = make(7, 5, 3)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return fused_smoothed_cross_entropy(hidden, weight, targets, 0.2, prior, "others", reduction=reduction)

    assert torch.autograd.gradcheck(loss, (hidden.requires_grad_(), weight.requires_grad_()))


def test_alpha_zero_is_plain_cross_entropy() -> None:
    hidden, weight, targets, _ = make(60, 31, 6)
    expected = solved(lambda h, w: F.cross_entropy(h @ w.T, targets), hidden, weight)
    torch.testing.assert_close(solved(fused_smoothed_cross_entropy, hidden, weight, targets, 0.0), expected)


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_relation_of_the_two_spreads(alpha: float) -> None:
    """Uniform over the wrong classes with α is uniform over all K with α·K/(K-1)."""
    hidden, weight, targets, _ = make(60, 31, 6)
    over_others = solved(fused_smoothed_cross_entropy, hidden, weight, targets, alpha, "uniform", "others")
    over_all = solved(fused_smoothed_cross_entropy, hidden, weight, targets, alpha * 31 / 30)
    torch.testing.assert_close(over_others, over_all)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_changes_nothing(dtype: torch.dtype) -> None:
    """Not even where padded rows are not numbers, and not by one bit."""
    hidden, weight, targets, _ = make(90, 40, 8, ignored=0)
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    loss, grad_hidden, grad_weight = solved(fused_smoothed_cross_entropy, hidden, weight, targets, 0.1)
    keep = torch.ones(150, dtype=torch.bool)
    keep[torch.randperm(150, generator=torch.Generator().manual_seed(3))[:60]] = False
    padded, padded_targets = torch.full((150, 8), torch.nan, dtype=dtype), torch.full((150,), -100)
    padded[keep], padded_targets[keep] = hidden, targets
    found = solved(fused_smoothed_cross_entropy, padded, weight, padded_targets, 0.1)
    assert torch.equal(found[0], loss)
    assert torch.equal(found[1][keep], grad_hidden)
    assert not found[1][~keep].any()
    assert torch.equal(found[2], grad_weight)


def test_another_ignore_index() -> None:
    hidden, weight, targets, _ = make(50, 20, 4)
    expected = solved(plain, hidden, weight, torch.where(targets == 0, -100, targets), 0.1)
    found = solved(
        fused_smoothed_cross_entropy, hidden, weight, torch.where(targets < 0, 0, targets), 0.1, "uniform", "all", 0
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 5])
def test_nothing_but_padding(rows: int, dtype: torch.dtype) -> None:
    hidden, weight = torch.randn(rows, 3, dtype=dtype), torch.randn(4, 3, dtype=dtype)
    targets = torch.full((rows,), -100)
    for loss in (plain, fused_smoothed_cross_entropy):
        value, grad_hidden, grad_weight = solved(loss, hidden, weight, targets, 0.1)
        assert value.item() == 0
        assert not grad_hidden.any()
        assert not grad_weight.any()


def test_backward_again_accumulates_and_scales() -> None:
    hidden, weight, targets, _ = make(20, 9, 4)
    hidden.requires_grad_()
    weight.requires_grad_()
    loss = fused_smoothed_cross_entropy(hidden, weight, targets, 0.1)
    (loss * 3).backward(retain_graph=True)
    first = hidden.grad.clone(), weight.grad.clone()
    loss.backward()
    torch.testing.assert_close((hidden.grad, weight.grad), tuple(gradient * 4 / 3 for gradient in first))


@pytest.mark.parametrize("wanted", ["hidden", "weight"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_only_one_gradient_wanted(wanted: str, dtype: torch.dtype) -> None:
    hidden, weight, targets, _ = make(40, 9, 4)
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    _, *gradients = solved(fused_smoothed_cross_entropy, hidden, weight, targets, 0.1)
    both = dict(zip(("hidden", "weight"), gradients, strict=True))
    tensors = {"hidden": hidden, "weight": weight}
    tensors[wanted].requires_grad_()
    fused_smoothed_cross_entropy(hidden, weight, targets, 0.1).backward()
    torch.testing.assert_close(tensors[wanted].grad, both[wanted])
    assert sum(tensor.grad is not None for tensor in tensors.values()) == 1


def test_no_gradient_no_graph() -> None:
    hidden, weight, targets, _ = make(40, 9, 4)
    expected = solved(fused_smoothed_cross_entropy, hidden, weight, targets, 0.1)[0]
    assert not fused_smoothed_cross_entropy(hidden, weight, targets, 0.1).requires_grad
    with torch.no_grad():
        loss, nll = fused_loss_and_nll(hidden.requires_grad_(), weight, targets, 0.1)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(nll, F.cross_entropy(hidden @ weight.T, targets).detach())


def test_weight_shared_with_an_embedding() -> None:
    _, weight, targets, _ = make(40, 9, 4)
    tokens = torch.randint(9, (40,), generator=torch.Generator().manual_seed(1))

    def by(loss: Callable[..., Tensor]) -> Tensor:
        shared = weight.clone().requires_grad_()
        loss(torch.tanh(shared[tokens]), shared, targets, 0.1).backward()
        return shared.grad

    torch.testing.assert_close(by(fused_smoothed_cross_entropy), by(plain))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_inputs(dtype: torch.dtype) -> None:
    hidden, weight, targets, _ = make(50, 30, 6)
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    expected = solved(fused_smoothed_cross_entropy, hidden, weight, targets, 0.1)
    strided_hidden, strided_weight = hidden.repeat(1, 2)[:, :6], weight.T.contiguous().T
    assert not strided_hidden.is_contiguous()
    assert not strided_weight.is_contiguous()
    loss = fused_smoothed_cross_entropy(strided_hidden, strided_weight, targets.repeat_interleave(2)[::2], 0.1)
    torch.testing.assert_close(loss, expected[0])
    tolerance = {"rtol": 1e-2, "atol": 1e-4} if dtype == torch.bfloat16 else {}
    for index, given in ((1, strided_hidden.clone()), (2, strided_weight)):
        leaf = given.requires_grad_()
        pair = (leaf, weight) if index == 1 else (hidden, leaf)
        fused_smoothed_cross_entropy(*pair, targets, 0.1).backward()
        torch.testing.assert_close(leaf.grad, expected[index], **tolerance)


@pytest.mark.usefixtures("tiny_chunks")
def test_huge_logits() -> None:
    """Labels that are certain, and labels in tiles whose share of the probability is below the smallest number."""
    hidden, weight, targets, _ = make(40, 300, 4, ignored=0)
    hidden = hidden * 200
    targets[:20] = (hidden @ weight.T).argmax(1)[:20]
    expected = solved(plain, hidden, weight, targets, 0.1)
    assert expected[0] > 100
    # logits are near 1,000 here, where neighbouring float32 numbers are 6e-5 apart, and bfloat16 numbers 4
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        found = solved(fused_smoothed_cross_entropy, hidden.to(dtype), weight.to(dtype), targets, 0.1)
        assert all(error < tolerance for error in relative_errors(found, expected))


@pytest.mark.parametrize("spread", ["all", "others"])
@pytest.mark.parametrize("classes", [700, 5000])
def test_bfloat16_stays_near_the_truth(classes: int, spread: str) -> None:
    """Against float64 on the same numbers: gradients within what rounding them costs, losses much closer than that."""
    hidden, weight, targets, prior = make(300, classes, 16)
    weight /= 4
    expected = solved(plain, hidden, weight, targets, 0.1, prior, spread)
    options = (targets, 0.1, prior, spread)
    tensors = solved(fused_smoothed_cross_entropy, hidden.bfloat16(), weight.bfloat16(), *options)
    assert [tensor.dtype for tensor in tensors] == [torch.float32, torch.bfloat16, torch.bfloat16]
    with torch.autocast("cpu", torch.bfloat16):
        masters = solved(fused_smoothed_cross_entropy, hidden.float(), weight.float(), *options)
        mixed = solved(fused_smoothed_cross_entropy, hidden.bfloat16(), weight.float(), *options)
    assert {tensor.dtype for tensor in masters} == {torch.float32}
    assert [tensor.dtype for tensor in mixed] == [torch.float32, torch.bfloat16, torch.float32]
    for found in (tensors, masters, mixed):
        loss_error, *gradient_errors = relative_errors(found, expected)
        assert loss_error < 1e-4
        assert all(error < 4e-3 for error in gradient_errors)


def test_float32_stays_near_the_truth() -> None:
    hidden, weight, targets, prior = make(300, 5000, 16)
    expected = solved(plain, hidden, weight, targets, 0.1, prior)
    found = solved(fused_smoothed_cross_entropy, hidden.float(), weight.float(), targets, 0.1, prior)
    assert all(error < 1e-6 for error in relative_errors(found, expected))


def test_the_same_bits_every_time() -> None:
    hidden, weight, targets, _ = make(300, 5000, 16)
    for dtype in (torch.float32, torch.bfloat16):
        results = [
            solved(fused_smoothed_cross_entropy, hidden.to(dtype), weight.to(dtype), targets, 0.1) for _ in range(2)
        ]
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def memory_events(profile: torch.profiler.profile) -> Iterator[tuple[int, int]]:
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            yield event.start_ns(), event.nbytes()


@pytest.mark.parametrize(
    ("kind", "classes", "width"),
    [
        ("float32", 8192, 128),
        ("bfloat16", 8192, 128),
        ("bfloat16", 8192, 256),
        ("autocast", 8192, 256),
        ("autocast", 16384, 64),
    ],
)
def test_memory_beyond_gradients_is_a_twentieth_of_the_logits(kind: str, classes: int, width: int) -> None:
    if kind != "float32" and this_processor().bf16_set is None:
        pytest.skip("this processor has no bf16: PyTorch emulates the products, a minute a case")
    torch.set_num_threads(2)  # the products' scratch grows with threads
    rows = 4096
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    hidden, weight = torch.randn(rows, width, dtype=dtype), torch.randn(classes, width, dtype=dtype)
    targets = torch.randint(classes, (rows,))
    hidden.requires_grad_()
    weight.requires_grad_()
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
    ):
        fused_smoothed_cross_entropy(hidden, weight, targets, 0.1).backward()
    held, peak = 0, 0
    for _, size in sorted(memory_events(profile)):
        held += size
        peak = max(peak, held)
    gradients = hidden.nbytes + weight.nbytes
    assert held >= gradients
    logits = rows * classes * (4 if kind == "float32" else 2)
    scratch = 0.01  # of the products' own, which differs from processor to processor
    assert (peak - gradients) / logits <= 0.05 + scratch


ERRORS = [
    ({"alpha": 1.0}, "alpha must be at least 0 and below 1"),
    ({"alpha": -0.1}, "alpha must be"),
    ({"alpha": float("nan")}, "alpha must be"),
    ({"spread": "none"}, 'spread must be "all" or "others"'),
    ({"reduction": "none"}, 'reduction must be "mean" or "sum"'),
    ({"targets_N": torch.zeros(3, dtype=torch.long)}, r"targets must be a vector of 2 integers, not .*int64 of shape"),
    ({"targets_N": torch.zeros(2)}, "targets must be a vector of 2 integers"),
    ({"targets_N": torch.tensor([0, 4])}, r"targets must lie in \[0, 4\) or be -100: row 1 is 4"),
    ({"targets_N": torch.tensor([-1, 0])}, "row 0 is -1"),
    ({"prior": "unigram"}, "prior must be .*length 4"),
    ({"prior": torch.full((3,), 1 / 3)}, "prior must be a floating-point vector of length 4"),
    ({"prior": [0.25] * 4}, "prior must be a floating-point vector of length 4"),
    ({"prior": torch.full((4,), 0.3)}, "prior must be probabilities: these sum to 1.2"),
    ({"prior": torch.tensor([1.5, -0.5, 0.0, 0.0])}, "the least is -0.5"),
    ({"prior": torch.tensor([1.0, 0.0, 0.0, 0.0]), "spread": "others"}, "more than one class"),
]


@pytest.mark.parametrize(("changed", "message"), ERRORS)
def test_mistakes_are_named(changed: dict[str, Any], message: str) -> None:
    options = {"targets_N": torch.tensor([0, 1]), "alpha": 0.1, **changed}
    with pytest.raises(ValueError, match=message):
        smoothed_cross_entropy(torch.randn(2, 4), **options)
    with pytest.raises(ValueError, match=message):
        fused_smoothed_cross_entropy(torch.randn(2, 3), torch.randn(4, 3), **options)


@pytest.mark.parametrize(
    ("hidden", "weight", "message"),
    [
        (torch.randn(2, 3), torch.randn(4, 5), "hidden has width 3, but weight has width 5"),
        (torch.randn(2, 1, 3), torch.randn(4, 3), "hidden must be a floating-point matrix"),
        (torch.randn(2, 3), torch.ones(4, 3, dtype=torch.long), "weight must be a floating-point matrix"),
        (torch.randn(2, 3).bfloat16(), torch.randn(4, 3), "cast one, or use torch.autocast"),
        (torch.randn(2, 3).half(), torch.randn(4, 3).half(), "float16"),
        (torch.randn(2, 3), torch.randn(0, 3), "weight must have a row for each class"),
    ],
)
def test_tensors_that_do_not_fit(hidden: Tensor, weight: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fused_smoothed_cross_entropy(hidden, weight, torch.tensor([0, 1]), 0.1)


def test_float16_is_refused_under_autocast_too() -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="float16"):
        fused_smoothed_cross_entropy(torch.randn(2, 3).half(), torch.randn(4, 3), torch.tensor([0, 1]), 0.1)


def test_nothing_is_made_for_a_gradient_that_nobody_wants() -> None:
    hidden, weight, targets, prior = make(5, 4, 3, ignored=1.0)
    none = torch.zeros(0, dtype=torch.long)
    empty = torch.zeros(0, dtype=torch.float64)
    problem = losses_fused.Problem(none, none, empty, empty, prior, 1.0, torch.float64)
    assert losses_fused.solve(hidden, weight, problem, False, False)[2:] == (None, None)
    assert targets.eq(-100).all()
    found = losses_fused.solve(hidden, weight, problem, True, False)
    assert found[2] is not None
    assert not found[2].any()
    assert found[3] is None


def test_logits_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="logits must be a floating-point matrix"):
        smoothed_cross_entropy(torch.randn(2, 3, 4), torch.tensor([0, 1]), 0.1)
