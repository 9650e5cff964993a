"""Decoding after distinct prefixes equals decoding without a cache."""

import pytest
import torch
from test_transformer import VARIANT_NAMES, VARIANTS, make
from test_transformer_decoding import SOURCE, from_scratch

from nmt_ls.prefix_decoder import PrefixDecoder


@pytest.mark.parametrize("variant", VARIANTS, ids=VARIANT_NAMES)
def test_cached_equals_recomputed_while_prefixes_branch_die_and_leave(variant):
    model = make(**variant)
    torch.manual_seed(1)
    decoder = PrefixDecoder(model, SOURCE)
    prefixes = [(sentence, [1]) for sentence in range(len(SOURCE))]
    parents = list(range(len(SOURCE)))
    widest = 0
    for step in range(14):
        sentences_N = torch.tensor([sentence for sentence, _ in prefixes])
        tokens_N = torch.tensor([tokens[-1] for _, tokens in prefixes])
        logits_NV = decoder.logits(tokens_N, torch.tensor(parents), sentences_N)
        for row, (sentence, tokens) in enumerate(prefixes):
            expected = from_scratch(model, SOURCE[sentence : sentence + 1], tokens)
            torch.testing.assert_close(logits_NV[row], expected, rtol=1e-10, atol=1e-10)
        # each prefix goes on in 0 to 3 ways, of at most nine a sentence; sentences leave, the first one first
        gone = {2: [0], 5: [2], 9: [1]}.get(step, [])
        continued = []
        for parent, (sentence, tokens) in enumerate(prefixes):
            ways = int(torch.randint(0, 4, ()))
            if sum(other == sentence for other, _, _ in continued) == 0:
                ways = max(ways, 1)
            for token in torch.randperm(12)[:ways].tolist():
                if sum(other == sentence for other, _, _ in continued) < 9 and sentence not in gone:
                    continued.append((sentence, parent, [*tokens, token + 3]))
        prefixes = [(sentence, tokens) for sentence, _, tokens in continued]
        parents = [parent for _, parent, _ in continued]
        widest = max(widest, len(prefixes))
    assert widest > 3 * len(SOURCE)  # more than the buffers had room for at first
    assert {sentence for sentence, _ in prefixes} == {3}


def test_what_no_prefix_descends_from_is_dropped():
    decoder = PrefixDecoder(make(), SOURCE[:1])
    sentence = torch.zeros(1, dtype=torch.int64)
    decoder.logits(torch.tensor([1]), sentence, sentence)
    for _ in range(40):  # nine ways to go on, of which one survives
        decoder.logits(torch.arange(3, 12), torch.zeros(9, dtype=torch.int64), sentence.expand(9))
    slots = decoder._slots
    assert slots.ancestors_NT.shape == (9, 41)
    assert slots._buffers[0][0].shape[1] < 2 * (41 + 9) + 9  # and not the 361 that there ever were


def test_under_autocast_it_is_close_and_returns_fp32():
    model = make(width=64).float()
    tokens_B, sentences_B = torch.ones(4, dtype=torch.int64), torch.arange(4)
    exact = PrefixDecoder(model, SOURCE).logits(tokens_B, sentences_B, sentences_B)
    with torch.autocast("cpu", torch.bfloat16):
        rough = PrefixDecoder(model, SOURCE).logits(tokens_B, sentences_B, sentences_B)
    assert exact.dtype == rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.05)
