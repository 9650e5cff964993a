import math

import numpy as np
import pytest
import torch

from nmt_ls.metrics.likelihood import (
    LikelihoodAccumulator,
    divergences,
    perplexity,
    sparse_divergences,
    token_statistics,
)


def test_figures_of_a_hand_made_distribution():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.25, 0.25, 0.5]], dtype=torch.float64))
    tokens = token_statistics(logits, torch.tensor([0, 1, 2]))
    result = LikelihoodAccumulator().update(tokens.log_probs, tokens.correct, tokens.entropies).compute()
    assert result.tokens == 3
    assert result.nll == pytest.approx(-(math.log(0.5) + math.log(0.2) + math.log(0.5)) / 3)
    assert result.perplexity == pytest.approx((1 / (0.5 * 0.2 * 0.5)) ** (1 / 3))
    assert result.accuracy == pytest.approx(2 / 3)
    entropy = -(0.1 * math.log(0.1) + 0.2 * math.log(0.2) + 0.7 * math.log(0.7))
    assert tokens.entropies[1].item() == pytest.approx(entropy)
    assert tokens.confidences.tolist() == pytest.approx([0.5, 0.7, 0.5])


def test_statistics_of_arrays():
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(20) % 5
    targets[3] = -100
    expected = token_statistics(logits, targets, 1.3)
    for one, other in zip(token_statistics(logits.numpy(), targets.numpy(), 1.3), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("row", [[0.0, math.nan, 1.0], [0.0, math.inf, 1.0], [-math.inf] * 3])
def test_logits_without_a_softmax_are_refused(row):
    logits = torch.tensor([[0.0, 1.0, 2.0], row])
    with pytest.raises(ValueError, match=r"logits must not hold NaN or \+inf, nor a row only -inf: row 1 does"):
        token_statistics(logits, torch.tensor([2, 1]))
    assert token_statistics(logits, torch.tensor([2, -100])).correct.tolist() == [True]  # a pad may hold anything


def test_pads_reach_no_figure():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 7, generator=generator)
    targets = torch.randint(1, 7, (50,), generator=generator)
    padded_logits = torch.cat([logits, torch.full((30, 7), 50.0).triu()])
    padded_targets = torch.cat([targets, torch.zeros(30, dtype=torch.long)])
    plain, padded = (
        token_statistics(z, y, ignore_index=0) for z, y in ((logits, targets), (padded_logits, padded_targets))
    )
    assert torch.equal(plain.log_probs, padded.log_probs)
    assert torch.equal(plain.confidences, padded.confidences)
    assert padded.kept.tolist() == [True] * 50 + [False] * 30


def test_mask_leaves_positions_out_and_merging_equals_one_pass():
    log_probs = -np.random.default_rng(0).exponential(size=(4, 5))
    correct = log_probs > -0.7
    mask = np.random.default_rng(1).random((4, 5)) < 0.6
    whole = LikelihoodAccumulator().update(log_probs, correct, mask_N=mask).compute()
    first = LikelihoodAccumulator().update(log_probs[:2], correct[:2], mask_N=mask[:2])
    second = LikelihoodAccumulator().update(torch.tensor(log_probs[2:]), torch.tensor(correct[2:]), mask_N=mask[2:])
    merged = first.merge(second).compute()
    assert whole.nll == pytest.approx(-log_probs[mask].mean())
    assert merged.nll == pytest.approx(whole.nll)
    assert merged.accuracy == pytest.approx(correct[mask].mean())
    assert math.isnan(merged.entropy)


def test_masked_classes_do_not_spoil_the_entropy():
    tokens = token_statistics(torch.tensor([[0.0, 0.0, -math.inf]]), torch.tensor([1]))
    assert tokens.entropies.item() == pytest.approx(math.log(2))
    assert tokens.log_probs.item() == pytest.approx(-math.log(2))


def test_many_slabs_equal_one(monkeypatch):
    logits = torch.randn(100, 11, generator=torch.Generator().manual_seed(3))
    targets = torch.arange(100) % 11
    whole = token_statistics(logits, targets, temperature=1.3)
    monkeypatch.setattr("nmt_ls.metrics.temperature.CHUNK_ELEMENTS", 70)
    slabs = token_statistics(logits, targets, temperature=1.3)
    for one, many in zip(whole, slabs, strict=True):
        torch.testing.assert_close(one, many)


@pytest.mark.parametrize("bad", [[0.1, -1.0], [float("nan"), -1.0]])
def test_impossible_log_probabilities_are_refused(bad):
    with pytest.raises(ValueError, match="log_probs"):
        LikelihoodAccumulator().update(bad)


@pytest.mark.parametrize(
    ("correct", "entropies", "message"),
    [
        ([5, math.nan], None, "correct must not hold NaN: the first is at index 1"),
        ([5, 1], None, r"correct must lie in \[0, 1\]"),
        (None, [-3, math.nan], "entropies must not hold NaN or infinite values"),
        (None, [-3, 1], "entropies must be at least 0, got a minimum of -3"),
    ],
)
def test_impossible_correctness_and_entropies_are_refused(correct, entropies, message):
    accumulator = LikelihoodAccumulator().update([-1.0], [True], [0.5])
    with pytest.raises(ValueError, match=message):
        accumulator.update([-1.0, -2.0], correct, entropies)
    assert accumulator.compute().nll == 1.0  # and nothing was added
    spoiled = accumulator.update([-1.0, -2.0], [1, 7], [0.5, math.nan], [True, False])  # a pad may hold anything
    assert spoiled.compute().entropy == 0.5


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match="log_probs and mask must have the same shape"):
        LikelihoodAccumulator().update([-1.0, -2.0], mask_N=[True])
    with pytest.raises(ValueError, match="same shape"):
        LikelihoodAccumulator().update([-1.0, -2.0], [True])
    with pytest.raises(ValueError, match="nothing"):
        LikelihoodAccumulator().compute()
    with pytest.raises(ValueError, match="targets must lie in"):
        token_statistics(torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="targets must be whole numbers"):
        token_statistics(torch.zeros(2, 3), torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="at least one row"):
        token_statistics(np.zeros((0, 3)), np.zeros(0, int))
    with pytest.raises(ValueError, match=r"\[N, K\]"):
        token_statistics(torch.zeros(2, 3), torch.tensor([0]))


def test_perplexity_overflows_to_infinity():
    assert perplexity(1e6) == math.inf
    assert perplexity(math.log(7)) == pytest.approx(7)


def test_divergences_by_hand():
    true = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    model = torch.tensor([[0.25, 0.5, 0.25], [0.0, 0.5, 0.5]]).log()
    kl, variation = divergences(true, model)
    assert kl.tolist() == pytest.approx([0.5 * math.log(2), math.inf])
    assert variation.tolist() == pytest.approx([0.25, 1.0])
    assert divergences(true.numpy(), model.numpy())[1].tolist() == variation.tolist()
    kl, variation = divergences(true, true.double().log())
    assert kl.tolist() == variation.tolist() == pytest.approx([0, 0], abs=1e-12)


def test_divergences_need_distributions():
    with pytest.raises(ValueError, match="sum of 1"):
        divergences(torch.tensor([[0.5, 0.2]]), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"\[N, K\]"):
        divergences(torch.ones(1, 1), torch.zeros(1, 2))


def test_sparse_divergences_are_the_dense_ones() -> None:
    # by hand: p = (1/2, 1/2, 0, 0) against a uniform q: KL log 2, variation 1/2, entropy log 2; p = q: 0, 0, log 4
    true = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    log_q = torch.full((2, 4), 0.25).log()
    rows, classes = true.nonzero(as_tuple=True)
    kl, variation, entropy = sparse_divergences(rows, classes, true[rows, classes], log_q)
    assert kl.tolist() == pytest.approx([math.log(2), 0.0], abs=1e-6)
    assert variation.tolist() == pytest.approx([0.5, 0.0], abs=1e-6)
    assert entropy.tolist() == pytest.approx([math.log(2), math.log(4)])
    generator = torch.Generator().manual_seed(0)
    log_q = torch.randn(30, 9, generator=generator, dtype=torch.float64).log_softmax(-1)
    true = torch.rand(30, 9, generator=generator, dtype=torch.float64) * (torch.rand(30, 9, generator=generator) < 0.4)
    true[:, 0] += 0.1
    true /= true.sum(-1, keepdim=True)
    rows, classes = true.nonzero(as_tuple=True)
    of_arrays = sparse_divergences(rows.numpy(), classes.numpy(), true[rows, classes].numpy(), log_q.numpy())
    sparse = sparse_divergences(rows, classes, true[rows, classes], log_q)
    assert all(torch.equal(one, other) for one, other in zip(of_arrays, sparse, strict=True))
    for found, dense in zip(sparse[:2], divergences(true, log_q), strict=True):
        assert torch.allclose(found, dense)
    with pytest.raises(ValueError, match="sum to 1"):
        sparse_divergences(rows[1:], classes[1:], true[rows, classes][1:], log_q)
