"""The Transformer: its configuration, its parameters, and what padding, order and dropout may and may not change."""

import dataclasses
import math
import re

import pytest
import torch
import torch.nn.functional as F

from nmt_ls.transformer import Transformer, TransformerConfig, sinusoids

SOURCE = torch.tensor([[5, 6, 7, 8, 2], [9, 4, 2, 0, 0], [2, 0, 0, 0, 0]])
TARGET = torch.tensor([[1, 10, 11, 12, 13, 14], [1, 9, 8, 0, 0, 0], [1, 0, 0, 0, 0, 0]])


def make(seed=0, vocabulary=15, **changes):
    """A small model in float64, in evaluation mode unless it has dropout; its embeddings break no symmetry."""
    values = {"encoder_layers": 2, "decoder_layers": 2, "width": 16, "feed_forward": 24, "heads": 4, "dropout": 0.0}
    values |= {"source_vocabulary": vocabulary, "target_vocabulary": vocabulary} | changes
    torch.manual_seed(seed)
    return Transformer(TransformerConfig(**values)).double().eval()


VARIANTS = [
    {"norm": norm, "attention": attention, "share_embeddings": share, "activation": activation}
    for norm, attention, share, activation in (
        ("pre", "explicit", "all", "relu"),
        ("post", "explicit", "target", "gelu"),
        ("pre", "fused", "none", "gelu"),
        ("post", "fused", "all", "relu"),
    )
]
VARIANT_NAMES = ["-".join(variant.values()) for variant in VARIANTS]


def loss_of(model, source_BS, target_BT):
    """Cross-entropy of the tokens after the first, summed, padding ignored."""
    logits_BTV = model.logits(model(source_BS, target_BT[:, :-1]))
    return F.cross_entropy(logits_BTV.flatten(0, 1), target_BT[:, 1:].flatten(), ignore_index=0, reduction="sum")


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_close(left, right, tolerance=1e-10):
    """Equal within the tolerance, a dictionary entry by entry."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for name in left:
            torch.testing.assert_close(left[name], right[name], rtol=tolerance, atol=tolerance, msg=lambda m: m)
    else:
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


# --- configuration


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 30, "heads": 4}, "width must be even and a multiple of heads (4), but is 30"),
        ({"width": 9, "heads": 3}, "width must be even"),
        ({"dropout": 1.0}, "dropout must lie in [0, 1)"),
        ({"attention_dropout": -0.1}, "attention_dropout must lie in [0, 1)"),
        ({"activation_dropout": 2}, "activation_dropout must lie in [0, 1)"),
        ({"norm": "middle"}, "norm must be one of pre, post, not 'middle'"),
        ({"activation": "tanh"}, "activation must be one of relu, gelu"),
        ({"preset": "huge"}, "preset must be one of mini, tiny, small, base, big"),
        ({"share_embeddings": "some"}, "share_embeddings must be one of all, target, none"),
        ({"attention": "flash"}, "attention must be one of auto, fused, explicit"),
        ({"decoder_layers": -1}, "decoder_layers must not be negative"),
        ({"source_vocabulary": 7, "target_vocabulary": 8}, "share_embeddings=all needs one joint vocabulary"),
    ],
)
def test_config_refuses_in_one_sentence_that_names_the_key(changes, words):
    with pytest.raises(ValueError, match=re.escape(words)) as refusal:
        TransformerConfig(**changes)
    assert "\n" not in str(refusal.value)


def test_model_refuses_a_vocabulary_that_was_never_set():
    with pytest.raises(ValueError, match="source_vocabulary is 0"):
        Transformer(TransformerConfig())


def test_config_is_frozen_and_explicit_sizes_win_over_the_preset():
    asked = TransformerConfig(preset="base", width=64, heads=2)
    config = asked.sized()
    # nothing is filled in before: another preset put over this config keeps only what was asked for
    assert dataclasses.replace(asked, preset="big").sized().encoder_layers == 6
    assert dataclasses.replace(asked, preset="tiny").sized().feed_forward == 256
    assert (config.encoder_layers, config.width, config.feed_forward, config.heads) == (6, 64, 2048, 2)
    assert TransformerConfig(**dataclasses.asdict(config)) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.width = 3


def test_share_target_allows_two_vocabularies():
    model = make(source_vocabulary=9, target_vocabulary=11, share_embeddings="target")
    assert model.source_embedding.weight.shape == (9, 16)
    assert model.output_weight.shape == (11, 16)
    assert model.logits(model(SOURCE.clamp(max=8), TARGET.clamp(max=10))).shape == (3, 6, 11)


# --- parameters


def count_by_hand(encoder, decoder, d, f, vocabulary, embeddings, pre_norm=True):
    """Weights and biases, summed as one would on paper."""
    attention = (3 * d * d + 3 * d) + (d * d + d)
    feed_forward = (d * f + f) + (f * d + d)
    norm = 2 * d
    layers = encoder * (attention + feed_forward + 2 * norm) + decoder * (2 * attention + feed_forward + 3 * norm)
    return embeddings * vocabulary * d + layers + (2 * norm if pre_norm else 0)


@pytest.mark.parametrize(
    ("preset", "sizes"),
    [
        ("mini", (2, 2, 128, 512)),
        ("tiny", (4, 4, 128, 256)),
        ("small", (3, 3, 256, 1024)),
        ("base", (6, 6, 512, 2048)),
        ("big", (6, 6, 1024, 4096)),
    ],
)
def test_presets_have_the_parameters_of_the_formula(preset, sizes):
    config = TransformerConfig(preset=preset, source_vocabulary=1000, target_vocabulary=1000)
    with torch.device("meta"):
        model = Transformer(config)
    assert sum(p.numel() for p in model.parameters()) == count_by_hand(*sizes, 1000, embeddings=1)


@pytest.mark.parametrize(("share", "embeddings"), [("all", 1), ("target", 2), ("none", 3)])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_parameter_count_of_each_way_of_sharing_and_norm(share, embeddings, norm):
    model = make(share_embeddings=share, norm=norm)
    expected = count_by_hand(2, 2, 16, 24, 15, embeddings, pre_norm=norm == "pre")
    assert sum(p.numel() for p in model.parameters()) == expected


def test_tying_shares_one_tensor_and_its_gradient():
    model = make(share_embeddings="all")
    assert model.source_embedding.weight is model.target_embedding.weight is model.output_weight
    apart = make(share_embeddings="none")
    apart.load_state_dict(model.state_dict())
    tied_gradient = gradients(model, loss_of(model, SOURCE, TARGET))["output_weight"]
    apart_gradients = gradients(apart, loss_of(apart, SOURCE, TARGET))
    names = ("source_embedding.weight", "target_embedding.weight", "output_weight")
    assert_close(tied_gradient, sum(apart_gradients[name] for name in names))
    half = make(share_embeddings="target")
    assert half.source_embedding.weight is not half.target_embedding.weight
    assert half.target_embedding.weight is half.output_weight


def test_initial_weights_have_the_moments_of_the_field():
    config = TransformerConfig(preset="small", source_vocabulary=2000, target_vocabulary=3000, share_embeddings="none")
    torch.manual_seed(3)
    model = Transformer(config)
    for embedding in (model.source_embedding.weight, model.target_embedding.weight):
        assert embedding[0].abs().max() == 0.0
        assert embedding[1:].std().item() == pytest.approx(256**-0.5, rel=0.01)
    assert model.output_weight.std().item() == pytest.approx(256**-0.5, rel=0.01)
    layer = model.decoder_layers[0]
    expected_bounds = {
        layer.self_attention.query_key_value: math.sqrt(6 / (4 * 256)),
        layer.cross_attention.query: math.sqrt(6 / (4 * 256)),
        layer.cross_attention.key_value: math.sqrt(6 / (4 * 256)),
        layer.self_attention.output: math.sqrt(6 / (2 * 256)),
        layer.feed_forward.inner: math.sqrt(6 / (256 + 1024)),
        layer.feed_forward.outer: math.sqrt(6 / (256 + 1024)),
    }
    for projection, bound in expected_bounds.items():
        assert projection.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
        assert projection.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
        assert projection.bias.abs().max() == 0.0


def test_sinusoids_by_hand():
    table = sinusoids(4, 6)
    rates = [1.0, 1e-2, 1e-4]  # three wavelengths in geometric progression from 1 to 1/10000
    for position in range(4):
        expected = [math.sin(position * rate) for rate in rates] + [math.cos(position * rate) for rate in rates]
        assert table[position].tolist() == pytest.approx(expected, abs=1e-7)


def test_positions_beyond_the_first_table_are_the_same_function():
    model = make()
    assert model.positions_TD.shape[0] < 700
    with torch.inference_mode():
        model(torch.full((1, 700), 5), TARGET[:1])
    torch.testing.assert_close(model.positions_TD[:700].float(), sinusoids(700, 16))
    assert not model.positions_TD.is_inference()  # a table made while inferring must serve training too


def test_embedding_is_scaled_and_positions_added():
    model = make()
    expected = model.source_embedding.weight[SOURCE] * 4.0 + sinusoids(5, 16)
    assert_close(model._embed(model.source_embedding, SOURCE, 0, 5), expected)


# --- results


@pytest.mark.parametrize("variant", VARIANTS, ids=VARIANT_NAMES)
def test_padding_changes_neither_outputs_nor_gradients(variant):
    model = make(**variant)
    alone = [(s[s != 0][None], t[t != 0][None]) for s, t in zip(SOURCE[:2], TARGET[:2], strict=True)]
    alone.append((SOURCE[2:, :1], torch.tensor([[1, 7]])))
    target = TARGET.clone()
    target[2, 1] = 7
    hidden_BTD = model(F.pad(SOURCE, (0, 3)), F.pad(target, (0, 2)))
    for row, (source_1S, target_1T) in enumerate(alone):
        assert_close(hidden_BTD[row : row + 1, : target_1T.shape[1]], model(source_1S, target_1T))
    together = gradients(model, loss_of(model, F.pad(SOURCE, (0, 3)), F.pad(target, (0, 2))))
    separate = gradients(model, sum(loss_of(model, *pair) for pair in alone))
    assert_close(together, separate)


@pytest.mark.parametrize("variant", VARIANTS, ids=VARIANT_NAMES)
def test_no_position_sees_the_future_and_each_sees_its_past_and_the_source(variant):
    model = make(**variant)
    source, target = SOURCE[:1], TARGET[:1]
    hidden = model(source, target)
    for position in range(1, target.shape[1]):
        changed = target.clone()
        changed[0, position] = 3
        difference = (model(source, changed) - hidden).abs().amax(-1)[0]
        assert difference[:position].max() == 0.0
        assert difference[position:].min() > 1e-6
    for position in range(source.shape[1]):
        changed = source.clone()
        changed[0, position] = 3
        assert (model(changed, target) - hidden).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_fused_and_explicit_attention_agree_in_values_and_gradients(norm):
    models = [make(norm=norm, attention=form) for form in ("fused", "explicit")]
    assert [model.decoder_layers[0].self_attention.form for model in models] == ["fused", "explicit"]
    assert_close(models[0](SOURCE, TARGET), models[1](SOURCE, TARGET))
    assert_close(*(gradients(model, loss_of(model, SOURCE, TARGET)) for model in models))


def test_a_row_of_nothing_but_padding_stays_finite():
    model = make()
    hidden = model(torch.zeros(1, 3, dtype=torch.int64), TARGET[:1])
    assert hidden.isfinite().all()


def test_pre_and_post_norm_end_as_they_should():
    pre, post = make(norm="pre"), make(norm="post")
    for model in (pre, post):
        hidden = model(SOURCE, TARGET)
        assert_close(hidden.mean(-1), torch.zeros(3, 6, dtype=torch.float64), tolerance=1e-6)
        assert_close(hidden.var(-1, unbiased=False), torch.ones(3, 6, dtype=torch.float64), tolerance=1e-3)
    assert isinstance(pre.decoder_norm, torch.nn.LayerNorm)
    assert not list(post.decoder_norm.parameters())


def test_pre_norm_layer_by_hand():
    model = make(norm="pre", activation="gelu")
    layer = model.encoder_layers[0]
    x_BSD = torch.randn(1, 3, 16, dtype=torch.float64)
    attention = layer.self_attention

    def norm(x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()

    q, k, v = (norm(x_BSD) @ attention.query_key_value.weight.T).split(16, dim=-1)
    heads = []
    for head in range(4):
        columns = slice(4 * head, 4 * head + 4)
        weights = torch.softmax(q[0, :, columns] @ k[0, :, columns].T / 2.0, dim=-1)
        heads.append(weights @ v[0, :, columns])
    middle = x_BSD + torch.cat(heads, dim=-1)[None] @ attention.output.weight.T
    inner = F.gelu(norm(middle) @ layer.feed_forward.inner.weight.T)
    expected = middle + inner @ layer.feed_forward.outer.weight.T
    assert_close(layer(x_BSD, torch.zeros(1, 1, 1, 3, dtype=torch.float64)), expected)


def test_logits_are_the_output_product_in_fp32_even_under_autocast():
    model = make().float()
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(SOURCE, TARGET)
        logits = model.logits(hidden)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, hidden.float() @ model.output_weight.T)


@pytest.mark.parametrize("variant", VARIANTS, ids=VARIANT_NAMES)
def test_bf16_autocast_stays_close_to_fp32(variant):
    model = make(**variant, width=64).float()
    exact = model(SOURCE, TARGET)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(SOURCE, TARGET)
    error = (rough.float() - exact).abs().max()
    assert 0.0 < error < 0.1  # of activations with variance 1


# --- dropout


def test_dropout_places_differ_between_passes_and_repeat_with_the_seed():
    model = make(dropout=0.3, attention_dropout=0.2, activation_dropout=0.2).train()

    def run(seed):
        torch.manual_seed(seed)
        return model(SOURCE, TARGET)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    model.eval()
    assert torch.equal(run(1), run(2))


@pytest.mark.parametrize("place", ["dropout", "attention_dropout", "activation_dropout"])
def test_each_dropout_acts_in_training_only(place):
    model = make(**{place: 0.5})
    evaluated = model(SOURCE, TARGET)
    model.train()
    assert not torch.equal(model(SOURCE, TARGET), evaluated)
    plain = make()
    plain.train()
    assert torch.equal(plain(SOURCE, TARGET), evaluated)
