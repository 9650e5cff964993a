"""Search over the real model: the cache against full recomputation, and search against rescoring."""

from __future__ import annotations

import pytest
import torch
from test_beam import check_equal, reference

from nmt_ls.search import SearchConfig, beam_search, maximum_lengths, rescore, sample
from nmt_ls.search.stepper import BOS, EOS, PAD
from nmt_ls.transformer import Transformer, TransformerConfig

VOCABULARY = 11


def tiny_model(dtype: torch.dtype, vocabulary: int = VOCABULARY, seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    config = TransformerConfig(
        source_vocabulary=vocabulary,
        target_vocabulary=vocabulary,
        encoder_layers=1,
        decoder_layers=2,
        width=16,
        feed_forward=24,
        heads=2,
    )
    model = Transformer(config).to(dtype).eval()
    with torch.no_grad():
        model.output_weight.mul_(3)  # a random model is nearly uniform; sharpen it, so that lengths differ
    return model


def random_sources(lengths: list[int], vocabulary: int = VOCABULARY) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    source_BS = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in enumerate(lengths):
        source_BS[row, : length - 1] = torch.randint(4, vocabulary, (length - 1,), generator=generator)
        source_BS[row, length - 1] = EOS
    return source_BS


def pad(rows: list[list[int]]) -> torch.Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows])


@pytest.mark.parametrize(
    "config",
    [
        SearchConfig(beam=4, nbest=4),
        SearchConfig(beam=3, stop="early", temperature=1.5, length_penalty_kind="gnmt", length_penalty=0.6),
        SearchConfig(beam=1, no_repeat_ngram=2),
    ],
)
def test_search_over_the_cache_equals_the_plain_reference_with_full_recomputation(config: SearchConfig) -> None:
    model = tiny_model(torch.float64)
    source_BS = random_sources([3, 6, 2, 5, 4, 8])
    longest_B = torch.tensor([4, 9, 3, 7, 5, 8])
    found = beam_search(model.start(source_BS, config.beam, 9), max_lengths_B=longest_B, config=config)
    for row, longest in enumerate(longest_B.tolist()):
        source_1S = source_BS[row : row + 1][:, : int((source_BS[row] != PAD).sum())]

        def logits(prefix: tuple[int, ...], source_1S: torch.Tensor = source_1S):
            with torch.no_grad():
                return model.logits(model(source_1S, torch.tensor([[BOS, *prefix]]))[0, -1]).numpy()

        expected = reference(logits, VOCABULARY, longest, config)
        assert [f.ids for f in found[row]] == [list(tokens) for _, _, tokens in expected]
        check_equal(found[row], expected, rtol=1e-9)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("samples", [0, 3])
def test_reported_log_probabilities_equal_rescoring_in_fp32(temperature: float, samples: int) -> None:
    model = tiny_model(torch.float32, vocabulary=300)
    source_BS = random_sources([7, 3, 12, 5], vocabulary=300)
    config = SearchConfig(beam=4, nbest=4, temperature=temperature, samples=samples)
    longest_B = maximum_lengths(source_BS, config)
    stepper = model.start(source_BS, config.width, int(longest_B.max()))
    found = (sample if samples else beam_search)(stepper, max_lengths_B=longest_B, config=config)
    hypotheses = [(row, hypothesis) for row, best in enumerate(found) for hypothesis in best]
    assert len(hypotheses) == 4 * (samples or 4)
    rows = torch.tensor([row for row, _ in hypotheses])
    target_in = pad([[BOS, *hypothesis.ids[:-1]] for _, hypothesis in hypotheses])
    target_out = pad([hypothesis.ids for _, hypothesis in hypotheses])
    rescored_BT = rescore(model, source_BS[rows], target_in, target_out, temperature)
    for (_, hypothesis), rescored_T in zip(hypotheses, rescored_BT, strict=True):
        length = len(hypothesis.ids)
        torch.testing.assert_close(
            torch.tensor(hypothesis.token_log_probs), rescored_T[:length].float(), rtol=0, atol=1e-4
        )
        assert not rescored_T[length:].any()
