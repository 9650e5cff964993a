"""Attention and dropout by themselves."""

import math

import pytest
import torch

from nmt_ls.attention import attend, causal_mask, dropout, padding_mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("probability", "kept"), [(0.1, 230 / 256), (0.3, 179 / 256), (0.5, 0.5), (0.0001, 255 / 256)])
def test_dropout_keeps_the_share_and_the_mean(dtype, probability, kept):
    torch.manual_seed(0)
    n = 400_003  # no multiple of eight
    out = dropout(torch.ones(n, dtype=dtype), probability, training=True)
    assert out.dtype == torch.promote_types(dtype, torch.float32)
    values = out.unique().tolist()
    assert values == pytest.approx([0.0, 1.0 / kept], rel=2**-8)
    share = (out != 0).double().mean().item()
    assert abs(share - kept) < 4 * math.sqrt(kept * (1 - kept) / n)
    for byte in range(8):  # the eight bytes of a word are eight independent draws of the same law
        share = (out[byte::8] != 0).double().mean().item()
        assert abs(share - kept) < 4 * math.sqrt(kept * (1 - kept) / (n / 8))


def test_dropout_bytes_of_a_word_are_uncorrelated():
    torch.manual_seed(1)
    kept_N8 = (dropout(torch.ones(200_000, 8), 0.3, training=True) != 0).double()
    correlation = torch.corrcoef(kept_N8.T) - torch.eye(8)
    assert correlation.abs().max() < 4.5 / math.sqrt(200_000)


def test_dropout_gradient_is_the_mask_scaled():
    x = torch.randn(50, 33, requires_grad=True)
    out = dropout(x, 0.3, training=True)
    upstream = torch.randn(50, 33)
    out.backward(upstream)
    kept = (out != 0).float()
    torch.testing.assert_close(out, x * kept * 256 / 179)
    torch.testing.assert_close(x.grad, upstream * kept * 256 / 179)


def test_dropout_does_nothing_at_zero_or_in_evaluation():
    x = torch.randn(10)
    state = torch.get_rng_state()
    assert dropout(x, 0.0, training=True) is x
    assert dropout(x, 0.5, training=False) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_follows_the_generator_and_leaves_its_input_alone():
    x = torch.ones(1000)
    torch.manual_seed(5)
    first, second = dropout(x, 0.4, training=True), dropout(x, 0.4, training=True)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(dropout(x, 0.4, training=True), first)
    assert torch.equal(x, torch.ones(1000))


def test_dropout_of_a_transposed_tensor():
    torch.manual_seed(2)
    x = torch.randn(7, 5, requires_grad=True)
    out = dropout(x.t(), 0.5, training=True)
    kept = (out != 0).float()
    torch.testing.assert_close(out, x.t() * kept * 2)
    out.sum().backward()
    torch.testing.assert_close(x.grad, kept.t() * 2)


def test_attention_by_hand():
    q = torch.tensor([[[[1.0, 0.0]]]], dtype=torch.float64)
    k = torch.tensor([[[[2.0, 5.0], [0.0, 1.0], [9.0, 9.0]]]], dtype=torch.float64)
    v = torch.tensor([[[[1.0, 0.0], [0.0, 1.0], [7.0, 7.0]]]], dtype=torch.float64)
    mask = padding_mask(torch.tensor([[4, 5, 0]]), torch.float64)
    weight = 1 / (1 + math.exp(-2 / math.sqrt(2)))
    for form in ("fused", "explicit"):
        out = attend(q, k, v, mask, form)
        assert out.flatten().tolist() == pytest.approx([weight, 1 - weight])


@pytest.mark.parametrize("shape", [(3, 2, 5, 7, 4), (1, 1, 1, 1, 8), (2, 4, 6, 6, 16)])
def test_forms_agree_with_any_mask_in_values_and_gradients(shape):
    sentences, heads, queries, keys, width = shape
    torch.manual_seed(0)
    mask = torch.randn(sentences, 1, queries, keys, dtype=torch.float64)
    results = []
    inputs = [torch.randn(sentences, heads, n, width, dtype=torch.float64) for n in (queries, keys, keys)]
    upstream = torch.randn(sentences, heads, queries, width, dtype=torch.float64)
    for form in ("fused", "explicit"):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = attend(*leaves, mask, form)
        out.backward(upstream)
        results.append([out, *(leaf.grad for leaf in leaves)])
    for fused, explicit in zip(*results, strict=True):
        torch.testing.assert_close(fused, explicit)


def test_attention_dropout_is_the_same_in_both_forms():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 4, 8).unbind(0)
    outputs = []
    for form in ("fused", "explicit"):
        torch.manual_seed(9)
        outputs.append(attend(q, k, v, torch.zeros(1, 1, 1, 4), form, dropout_probability=0.5))
    assert torch.equal(*outputs)
    assert not torch.allclose(outputs[0], attend(q, k, v, torch.zeros(1, 1, 1, 4), "explicit"))


@pytest.mark.parametrize(
    ("queries", "keys", "expected"), [(4, 300, "explicit"), (256, 256, "explicit"), (256, 257, "fused")]
)
def test_auto_takes_the_explicit_form_for_short_sentences_on_a_cpu(monkeypatch, queries, keys, expected):
    used = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def watched(*arguments, **named):
        used.append("fused")
        return kernel(*arguments, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    q, k, v = (torch.randn(1, 1, n, 4) for n in (queries, keys, keys))
    mask = torch.zeros(1, 1, 1, keys)
    out = attend(q, k, v, mask, "auto")
    assert (used or ["explicit"]) == [expected]
    torch.testing.assert_close(out, attend(q, k, v, mask, "explicit"))


def test_causal_mask_by_hand():
    least = -1e9
    expected = [[0.0, least, least], [0.0, 0.0, least], [0.0, 0.0, 0.0]]
    assert causal_mask(3, torch.float32, torch.device("cpu"))[0, 0].tolist() == expected
