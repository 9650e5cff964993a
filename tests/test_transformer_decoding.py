"""Decoding through the cache equals decoding without one."""

import pytest
import torch
from test_transformer import VARIANT_NAMES, VARIANTS, make

SOURCE = torch.tensor([[5, 6, 7, 8, 2], [9, 4, 2, 0, 0], [11, 3, 12, 2, 0], [2, 0, 0, 0, 0]])


def from_scratch(model, source_1S, tokens):
    """Next-token logits after one hypothesis, recomputed whole."""
    return model.logits(model(source_1S, torch.tensor([tokens])))[0, -1]


@pytest.mark.parametrize("variant", VARIANTS, ids=VARIANT_NAMES)
@pytest.mark.parametrize("beams", [1, 3])
def test_cached_equals_recomputed_with_random_ancestry_and_departures(variant, beams):
    model = make(**variant)
    torch.manual_seed(beams)
    rows = list(range(len(SOURCE)))
    hypotheses = {row: [[1] for _ in range(beams)] for row in rows}
    with torch.no_grad():
        state = model.start(SOURCE, beams, max_steps=11)
        for step in range(11):  # more than a block of the cache
            logits_BKV = state.logits(torch.tensor([[h[-1] for h in hypotheses[row]] for row in rows]))
            assert logits_BKV.shape == (len(rows), beams, 15)
            for index, row in enumerate(rows):
                for beam, tokens in enumerate(hypotheses[row]):
                    expected = from_scratch(model, SOURCE[row : row + 1], tokens)
                    torch.testing.assert_close(logits_BKV[index, beam], expected, rtol=1e-10, atol=1e-10)
            parents_BK = torch.randint(beams, (len(rows), beams))
            tokens_BK = torch.randint(3, 15, (len(rows), beams))
            state.reorder(parents_BK)
            for index, row in enumerate(rows):
                hypotheses[row] = [
                    [*hypotheses[row][parents_BK[index, beam]], int(tokens_BK[index, beam])] for beam in range(beams)
                ]
            if step in (2, 5):
                kept = torch.randperm(len(rows))[:-1]  # one sentence leaves, the others change places
                state.keep(kept)
                rows = [rows[index] for index in kept]


def test_keep_before_the_first_step_and_down_to_nothing():
    model = make()
    state = model.start(SOURCE, 2, max_steps=3)
    state.keep(torch.tensor([2]))
    with torch.no_grad():
        expected = from_scratch(model, SOURCE[2:3], [1])
    torch.testing.assert_close(state.logits(torch.ones(1, 2, dtype=torch.int64))[0, 1], expected)
    state.keep(torch.tensor([], dtype=torch.int64))
    assert state.logits(torch.ones(0, 2, dtype=torch.int64)).shape == (0, 2, 15)


def test_a_full_cache_says_so():
    state = make().start(SOURCE, 1, max_steps=1)
    tokens_BK = torch.ones(4, 1, dtype=torch.int64)
    state.logits(tokens_BK)
    with pytest.raises(ValueError, match="the cache holds 1 steps: start with a larger max_steps"):
        state.logits(tokens_BK)


def test_source_keys_and_values_are_held_once_a_sentence():
    state = make().start(SOURCE, 5, max_steps=2)
    assert all(k.shape == v.shape == (4, 4, 5, 4) for k, v in (state._cache.source(layer) for layer in range(2)))


def test_reordering_moves_no_keys():
    state = make().start(SOURCE, 3, max_steps=4)
    state.logits(torch.ones(4, 3, dtype=torch.int64))
    buffers = [buffer for pair in state._cache._targets for buffer in pair]
    before = [buffer.clone() for buffer in buffers]
    state.reorder(torch.tensor([[2, 0, 0]] * 4))
    after = [buffer for pair in state._cache._targets for buffer in pair]
    assert all(new is old for new, old in zip(after, buffers, strict=True))
    assert all(torch.equal(new, old) for new, old in zip(after, before, strict=True))


def test_decoding_under_autocast_is_close_and_returns_fp32():
    model = make(width=64).float()
    tokens_BK = torch.ones(4, 2, dtype=torch.int64)
    exact = model.start(SOURCE, 2, 1).logits(tokens_BK)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.start(SOURCE, 2, 1).logits(tokens_BK)
    assert exact.dtype == rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.05)
