"""The two-level choice against a plain sort of everything, and the normaliser against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nmt_ls.search.candidates import best_candidates, chunk_width, first_best, log_normaliser


def sort_everything(logits_BKV: Tensor, offsets_BK: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    ranked = (logits_BKV + offsets_BK[..., None]).flatten(1).sort(dim=1, descending=True, stable=True)
    positions = ranked.indices[:, :n]
    return ranked.values[:, :n], positions // logits_BKV.shape[2], positions % logits_BKV.shape[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("vocabulary", [5, 256, 257, 384, 1000, 1021])
@pytest.mark.parametrize("ties", ["none", "many", "all"])
def test_two_levels_choose_what_a_stable_sort_chooses(vocabulary: int, dtype: torch.dtype, ties: str) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(3, 4, vocabulary, generator=generator, dtype=dtype)
    if ties == "many":
        logits = logits.round()
    if ties == "all":
        logits = torch.zeros_like(logits)
    offsets = torch.tensor([[0.0, -0.25, -1.0, 1.0]] * 3, dtype=dtype)
    for n in (1, 2, 8, 4 * 5):
        for got, expected in zip(best_candidates(logits, offsets, n), sort_everything(logits, offsets, n), strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("vocabulary", [5, 257, 640])
def test_dead_hypotheses_and_forbidden_tokens_come_last(vocabulary: int) -> None:
    logits = torch.randn(2, 3, vocabulary, generator=torch.Generator().manual_seed(0))
    logits[0, :, 1:] = float("-inf")
    offsets = torch.tensor([[0.0, float("-inf"), -1.0], [float("-inf")] * 3])
    values, hypotheses, tokens = best_candidates(logits, offsets, 4)
    assert values[0].isfinite().tolist() == [True, True, False, False]
    first, third = logits[0, 0, 0].item(), logits[0, 2, 0].item() - 1
    assert values[0, :2].tolist() == pytest.approx(sorted([first, third], reverse=True))
    assert hypotheses[0, :2].tolist() == ([0, 2] if first > third else [2, 0])
    assert tokens[0, :2].tolist() == [0, 0]
    assert (values[1] == float("-inf")).all()
    _, hypotheses, tokens = best_candidates(logits, offsets, 3 * vocabulary)
    assert ((tokens >= 0) & (tokens < vocabulary) & (hypotheses >= 0) & (hypotheses < 3)).all()


def test_equals_topk_of_torch_where_nothing_ties() -> None:
    values = torch.randn(7, 900, generator=torch.Generator().manual_seed(1)) * 50
    assert torch.equal(first_best(values, 11), values.topk(11).indices)


def test_the_lower_position_wins_a_tie_and_negative_zero_is_zero() -> None:
    values = torch.tensor([[-1.0, -0.0, 3.0, 0.0, 3.0, float("-inf"), float("-inf")]])
    for dtype in (torch.float32, torch.float64):
        assert first_best(values.to(dtype), 7).tolist() == [[2, 4, 1, 3, 0, 5, 6]]


def test_chunks_divide_the_vocabulary_where_a_width_does() -> None:
    assert (chunk_width(32000), chunk_width(6)) == (128, 6)
    for vocabulary in (7800, 8000, 10000, 9600, 16384, 50000):
        assert vocabulary % chunk_width(vocabulary) == 0
    assert 64 <= chunk_width(7817) <= 256  # a prime


@pytest.mark.parametrize("vocabulary", [4, 7817])
def test_normaliser(vocabulary: int) -> None:
    logits = torch.randn(9, 5, vocabulary, generator=torch.Generator().manual_seed(2)) * 10
    logits[0, 0, 0] = float("-inf")
    logits[1] += 3000
    exact = logits.double().logsumexp(-1)
    torch.testing.assert_close(log_normaliser(logits).double(), exact, rtol=2e-7, atol=2e-6)
    torch.testing.assert_close(log_normaliser(logits.double()), exact, rtol=1e-14, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normaliser_where_the_first_logits_say_nothing_of_the_others(dtype: torch.dtype) -> None:
    logits = torch.randn(3, 2, 600, generator=torch.Generator().manual_seed(3), dtype=dtype)
    logits[0, 0, 500] = 5000.0  # beyond every power of two
    logits[1, 1, :200] = float("-inf")
    logits[2, 0, 400] = float("nan")
    found = log_normaliser(logits)
    assert found.isnan().tolist() == [[False, False], [False, False], [True, False]]
    torch.testing.assert_close(found.double(), logits.double().logsumexp(-1), rtol=2e-7, atol=2e-6, equal_nan=True)
    rows = torch.stack([log_normaliser(row[None, None])[0, 0] for row in logits[:, 1]])
    torch.testing.assert_close(rows, found[:, 1], rtol=1e-7, atol=1e-6)
