"""Logit gaps, computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmt_ls.losses import smoothed_cross_entropy
from nmt_ls.metrics.logit_gaps import LogitGapAccumulator, ideal_logit_gap

LOGITS = torch.tensor([[2.0, 0.0, 1.0], [1.0, 1.0, 5.0], [9.0, 9.0, 9.0]])
TARGETS = torch.tensor([0, 2, -100])


def test_by_hand() -> None:
    gaps = LogitGapAccumulator(-10, 10, 40).update(LOGITS, TARGETS).compute()
    # gaps {2, 1} and {4, 4}: means 1.5 and 4, sds 0.5 and 0; the third row is ignored
    assert (gaps.count, gaps.classes) == (2, 3)
    assert gaps.mean == pytest.approx(2.75)
    assert gaps.sd == pytest.approx(1.25)
    assert gaps.within_sd == pytest.approx(0.25)
    assert {float(gaps.edges[i]): int(gaps.gap_counts[i]) for i in np.flatnonzero(gaps.gap_counts)} == {
        1: 1,
        2: 1,
        4: 2,
    }
    assert {float(gaps.edges[i]): int(gaps.token_counts[i]) for i in np.flatnonzero(gaps.token_counts)} == {
        1.5: 1,
        4: 1,
    }
    assert gaps.quantile(0.0) == 1.5
    assert gaps.quantile(0.5) == 2.0  # the right edge of the first token's cell
    assert gaps.quantile(1.0) == 4.5


def test_of_arrays() -> None:
    assert LogitGapAccumulator().update(LOGITS.numpy(), TARGETS.numpy()).compute().mean == pytest.approx(2.75)


def test_a_label_that_is_no_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"targets must lie in \[0, 2\] or be -100, got 0 to 3"):
        LogitGapAccumulator().update(LOGITS, torch.tensor([0, 3, -100]))


def test_a_gap_outside_the_histogram_is_in_its_end_cells_and_in_no_mean_lost() -> None:
    gaps = LogitGapAccumulator(-1, 1, 2).update(torch.tensor([[0.0, 9.0, -9.0]]), torch.tensor([0])).compute()
    assert gaps.gap_counts.tolist() == [1, 1]
    assert gaps.mean == 0.0
    assert gaps.within_sd == pytest.approx(9.0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(2, 30), classes=st.integers(2, 8))
def test_how_a_stream_is_cut_changes_nothing(seed: int, rows: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64) * 4
    targets = torch.randint(classes, (rows,), generator=generator)
    whole = LogitGapAccumulator().update(logits, targets).compute()
    cut = rows // 2
    parts = LogitGapAccumulator().update(logits[:cut], targets[:cut])
    other = LogitGapAccumulator().update(logits[cut:], targets[cut:])
    merged = parts.merge(other).compute()
    gaps = [[float(z[y] - z[k]) for k in range(classes) if k != y] for z, y in zip(logits, targets, strict=True)]
    means = [np.mean(row) for row in gaps]
    for found in (whole, merged):
        assert found.mean == pytest.approx(np.mean(means))
        assert found.sd == pytest.approx(np.std(means), abs=1e-6)
        assert found.within_sd == pytest.approx(np.mean([np.std(row) for row in gaps]))
        assert found.gap_counts.sum() == rows * (classes - 1)
        assert found.gap_counts.tolist() == whole.gap_counts.tolist()
        width = found.edges[1] - found.edges[0]
        assert found.quantile(0.5) == pytest.approx(np.quantile(means, 0.5, method="inverted_cdf"), abs=width * 1.01)


@pytest.mark.parametrize("spread", ["all", "others"])
def test_the_loss_is_least_at_the_ideal_gap(spread: str) -> None:
    classes, alpha, target = 7, 0.2, torch.tensor([3])
    logits = torch.zeros(1, classes, dtype=torch.float64)
    logits[0, 3] = ideal_logit_gap(classes, alpha, spread)  # type: ignore[arg-type]
    logits.requires_grad_()
    smoothed_cross_entropy(logits, target, alpha, "uniform", spread).backward()  # type: ignore[arg-type]
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-12


def test_the_ideal_by_hand() -> None:
    assert ideal_logit_gap(10, 0.1) == pytest.approx(math.log(91))
    assert ideal_logit_gap(10, 0.0) == math.inf


@pytest.mark.parametrize("logits", [[[0.0, -math.inf]], [[math.nan, 0.0]]])
def test_gaps_that_are_no_numbers_are_refused(logits: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="finite"):
        LogitGapAccumulator().update(torch.tensor(logits), torch.tensor([0]))


def test_refused() -> None:
    with pytest.raises(ValueError, match="of nothing"):
        LogitGapAccumulator().update(LOGITS, torch.full((3,), -100)).compute()
    with pytest.raises(ValueError, match="3 are wanted"):
        LogitGapAccumulator().update(LOGITS, TARGETS).update(LOGITS[:, :2], torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match="classes"):
        ideal_logit_gap(1, 0.1)
    with pytest.raises(ValueError, match="histograms"):
        LogitGapAccumulator(0, 1, 2).merge(LogitGapAccumulator())
