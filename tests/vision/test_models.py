"""The classifiers: published parameter counts, shapes, templates, and the arithmetic that is our own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vision_ls.models import ImageModel, ImageShape, ModelConfig, ModelName, build_model
from vision_ls.models.alexnet import ALPHA, _pool, local_response_norm
from vision_ls.models.resnet import Block

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


def test_the_widths_of_tensor2tensor_by_count() -> None:
    model = model_of("resnet20", CIFAR, widths=(32, 64, 128), stem_width=16, shortcut="projection")
    blocks = [(16, 32), (32, 32), (32, 32), (32, 64), (64, 64), (64, 64), (64, 128), (128, 128), (128, 128)]
    convolutions = 3 * 16 * 9 + sum(9 * (a * b + b * b) for a, b in blocks)
    projections = 16 * 32 + 32 * 64 + 64 * 128
    norms = 2 * (sum(a + b for a, b in blocks) + 128)
    assert parameters(model) == convolutions + projections + norms + 10 * (128 + 1)
    with torch.no_grad():
        assert model.eval().penultimate(torch.randn(2, *CIFAR)).shape == (2, 128)


@torch.no_grad()
def test_a_block_of_zeroed_convolutions_is_its_shortcut() -> None:
    x_NCHW = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    padded, projected = Block(3, 5, 2).eval(), Block(3, 5, 2, projected=True).eval()
    for block in (padded, projected):
        torch.nn.init.zeros_(block.conv1.weight)
        torch.nn.init.zeros_(block.conv2.weight)
    expected_NCHW = torch.cat((x_NCHW[:, :, ::2, ::2], torch.zeros(2, 2, 3, 3)), dim=1)
    assert torch.equal(padded(x_NCHW), expected_NCHW)  # as it came, neither normalised nor rectified
    assert projected.projection is not None
    active_NCHW = F.relu(x_NCHW / (1 + 1e-5) ** 0.5)[:, :, ::2, ::2]
    weight = projected.projection.weight[:, :, 0, 0]
    torch.testing.assert_close(projected(x_NCHW), torch.einsum("oc,nchw->nohw", weight, active_NCHW))


@torch.no_grad()
def test_convolutions_read_what_was_normalised_and_rectified() -> None:
    block = Block(1, 1, 1).eval()
    for convolution in (block.conv1, block.conv2):
        torch.nn.init.dirac_(convolution.weight)
    block.norm1.bias.fill_(-1.0)
    block.norm2.bias.fill_(0.5)
    x_NCHW = torch.tensor([-3.0, 0.5, 3.0]).view(1, 1, 1, 3)
    # relu(x - 1) = 0, 0, 2; relu of that + 0.5; added to x
    expected = torch.tensor([-2.5, 1.0, 5.5]).view(1, 1, 1, 3)
    torch.testing.assert_close(block(x_NCHW), expected, rtol=1e-4, atol=1e-4)


def test_pools_hang_over_the_side_that_tensorflow_pads() -> None:
    even, odd = (torch.arange(1.0, side + 1).expand(1, 1, side, side) for side in (4, 5))
    assert _pool(even)[0, 0].tolist() == [[3.0, 4.0]] * 2  # windows 1 2 3 and 3 4, nothing before the first
    assert _pool(odd)[0, 0].tolist() == [[2.0, 4.0, 5.0]] * 3  # 1 2, 2 3 4 and 4 5
    falling = torch.arange(4.0, 0.0, -1).expand(1, 1, 4, 4)
    assert _pool(falling)[0, 0].tolist() == [[4.0, 2.0]] * 2  # padding before would give 4 3


def test_maps_of_inception_are_35_17_and_8() -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig(name="inception_v4"), 1000, (3, 299, 299)).eval()
        shapes = []
        for layer in model.layers:  # type: ignore[union-attr, operator]
            layer.register_forward_hook(lambda *arguments: shapes.append(tuple(arguments[2].shape[1:])))
        model.penultimate(torch.empty(1, 3, 299, 299))
    assert list(dict.fromkeys(shapes[-17:])) == [(384, 35, 35), (1024, 17, 17), (1536, 8, 8)]


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
        ({"name": "resnet20", "stem_width": 17}, r"stem_width \(17\) above the first stage's \(16\)"),
        ({"name": "resnet20", "shortcut": "none"}, "shortcut must be pad or projection"),
        ({"name": "alexnet", "shortcut": "projection"}, "stem_width and shortcut belong to the ResNets"),
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
