"""The classifiers: published parameter counts, shapes, templates, and the arithmetic that is our own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vision_ls.models import ImageModel, ImageShape, ModelConfig, ModelName, build_model
from vision_ls.models.alexnet import ALPHA, local_response_norm

CIFAR = (3, 32, 32)


def model_of(name: ModelName, shape: ImageShape, classes: int = 10, **settings: object) -> ImageModel:
    torch.manual_seed(0)
    return build_model(ModelConfig(name=name, **settings), classes, shape)  # type: ignore[arg-type]


def parameters(model: ImageModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "classes", "count"),
    [
        ("mnist_teacher", (1, 28, 28), 10, 784 * 1200 + 1200 * 1200 + 12000 + 2410),
        ("mnist_student", (1, 28, 28), 10, 784 * 800 + 800 * 800 + 8000 + 1610),
        ("alexnet", (3, 24, 24), 10, 1_068_298),  # the tutorial's own count
        ("inception_v4", (3, 299, 299), 1000, 42_679_816),
    ],
)
def test_parameter_counts(name: ModelName, shape: ImageShape, classes: int, count: int) -> None:
    assert parameters(model_of(name, shape, classes)) == count


@pytest.mark.parametrize(("name", "millions"), [("resnet20", 0.27), ("resnet56", 0.85)])
def test_residual_networks_have_the_published_size(name: ModelName, millions: float) -> None:
    assert round(parameters(model_of(name, CIFAR)) / 1e6, 2) == millions


def test_tensor2tensors_widths_make_four_times_the_parameters() -> None:
    ratio = parameters(model_of("resnet56", CIFAR, widths=(32, 64, 128))) / parameters(model_of("resnet56", CIFAR))
    assert ratio == pytest.approx(4.0, rel=0.01)


@pytest.mark.parametrize(
    ("name", "shape", "width"),
    [
        ("mnist_teacher", (1, 28, 28), 1200),
        ("mnist_student", (1, 28, 28), 800),
        ("alexnet", (3, 24, 24), 192),
        ("alexnet", (3, 32, 21), 192),
        ("resnet20", CIFAR, 64),
        ("inception_v4", (3, 75, 75), 1536),
        ("small_cnn", (1, 17, 16), 128),
    ],
)
@torch.no_grad()
def test_logits_are_the_templates_over_the_penultimate_layer(name: ModelName, shape: ImageShape, width: int) -> None:
    model = model_of(name, shape, classes=7).eval()
    x_NCHW = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    activations_ND = model.penultimate(x_NCHW)
    assert activations_ND.shape == (2, width)
    assert model.templates.shape == (7, width)
    assert not model.templates.requires_grad
    torch.testing.assert_close(model(x_NCHW), activations_ND @ model.templates.T + model.last.bias)


@pytest.mark.parametrize(("name", "shape"), [("resnet20", CIFAR), ("alexnet", (3, 24, 24)), ("small_cnn", CIFAR)])
def test_channels_last_changes_no_gradient(name: ModelName, shape: ImageShape) -> None:
    x_NCHW = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1)).double()
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = model_of(name, shape).double().to(memory_format=layout)  # type: ignore[call-overload]
        F.cross_entropy(model(x_NCHW.to(memory_format=layout)), torch.arange(4)).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("name", "shape"), [("resnet20", CIFAR), ("alexnet", (3, 24, 24)), ("small_cnn", CIFAR)])
def test_logits_stay_fp32_under_autocast(name: ModelName, shape: ImageShape) -> None:
    model = model_of(name, shape).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x_NCHW = torch.randn(4, *shape).to(memory_format=torch.channels_last)
    plain_NK = model(x_NCHW)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits_NK = model(x_NCHW)
    logits_NK.sum().backward()
    assert logits_NK.dtype == torch.float32
    assert (logits_NK - plain_NK).norm() < 0.05 * plain_NK.norm()


def test_dropout_is_for_training_alone() -> None:
    model = model_of("mnist_teacher", (1, 4, 4), widths=(50, 50))
    x_NCHW = torch.rand(3, 1, 4, 4)
    assert not torch.equal(model(x_NCHW), model(x_NCHW))
    model.eval()
    torch.testing.assert_close(model(x_NCHW), model(x_NCHW), rtol=0, atol=0)
    student = model_of("mnist_student", (1, 4, 4), widths=(50, 50))
    torch.testing.assert_close(student(x_NCHW), student(x_NCHW), rtol=0, atol=0)


def test_a_stem_of_stride_two_halves_every_map() -> None:
    seen = []
    model = model_of("resnet20", (3, 64, 64), stem_stride=2)
    model.norm.register_forward_hook(lambda *arguments: seen.append(arguments[2].shape))  # type: ignore[union-attr]
    model(torch.randn(2, 3, 64, 64))
    assert seen == [(2, 64, 8, 8)]


def test_normalisation_by_hand() -> None:
    x_NCHW = torch.zeros(1, 7, 1, 1, dtype=torch.float64)
    x_NCHW[0, 0], x_NCHW[0, 4], x_NCHW[0, 6] = 30.0, 40.0, 20.0
    y_NCHW = local_response_norm(x_NCHW)
    # the first sees itself and the fifth; the fifth all three; the last itself and the fifth
    for channel, squares in ((0, 900 + 1600), (4, 900 + 1600 + 400), (6, 1600 + 400)):
        expected = float(x_NCHW[0, channel]) * (1 + ALPHA * squares) ** -0.75
        assert float(y_NCHW[0, channel]) == pytest.approx(expected, rel=1e-12)


def test_normalisation_is_pytorchs_and_so_is_its_gradient() -> None:
    def theirs(x_NCHW: Tensor) -> Tensor:
        return F.local_response_norm(x_NCHW, 9, alpha=9 * ALPHA, beta=0.75, k=1.0)

    x_NCHW = 20 * torch.randn(2, 13, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours, reference = x_NCHW.clone().requires_grad_(), x_NCHW.clone().requires_grad_()
    weights = torch.rand_like(x_NCHW)
    (local_response_norm(ours) * weights).sum().backward()
    (theirs(reference) * weights).sum().backward()
    torch.testing.assert_close(local_response_norm(x_NCHW), theirs(x_NCHW))
    torch.testing.assert_close(ours.grad, reference.grad)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet18"}, "name must be one of mnist_teacher"),
        ({"name": "resnet20", "widths": (16, 32)}, r"widths: resnet20 takes 3 \(16 32 64 by default\), not 2"),
        ({"name": "inception_v4", "widths": (16,)}, "widths: inception_v4 has fixed ones"),
        ({"name": "alexnet", "widths": (64, 64, 0, 192)}, "widths must be positive"),
        ({"dropout": 1.0}, "dropout must lie"),
        ({"name": "resnet20", "stem_stride": 3}, "stem_stride must be 1 or 2"),
        ({"name": "alexnet", "stem_stride": 2}, "stem_stride belongs to the ResNets"),
    ],
)
def test_refused_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "shape", "classes", "message"),
    [
        ("alexnet", (3, 8, 24), 10, "at least 12x12 pixels, not 8x24"),
        ("inception_v4", (3, 64, 64), 10, "at least 75x75 pixels, not 64x64"),
        ("small_cnn", CIFAR, 1, "at least 2 classes"),
        ("small_cnn", (0, 32, 32), 10, "image_shape must be"),
    ],
)
def test_refused_shapes(name: ModelName, shape: ImageShape, classes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_of(name, shape, classes)


def test_residual_widths_may_not_fall() -> None:
    with pytest.raises(ValueError, match="must not fall"):
        model_of("resnet20", CIFAR, widths=(32, 16, 64))
