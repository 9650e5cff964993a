from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nmt_ls.search import rescore
from nmt_ls.search.rescoring import CHUNK_LOGITS


class EmbeddingModel:
    """Activations are the embedded target_in; counts the logits that exist at a time."""

    def __init__(self, vocabulary: int) -> None:
        generator = torch.Generator().manual_seed(3)
        self.weight_VD = torch.randn(vocabulary, 5, generator=generator)
        self.most_logits = 0

    def __call__(self, source_BS: Tensor, target_in_BT: Tensor) -> Tensor:
        return self.weight_VD[target_in_BT] + source_BS.sum(1)[:, None, None] / 100

    def logits(self, hidden_ND: Tensor) -> Tensor:
        logits = hidden_ND @ self.weight_VD.T
        self.most_logits = max(self.most_logits, logits.numel())
        return logits


SOURCE = torch.tensor([[5, 2, 0], [4, 6, 2]])
TARGET_IN = torch.tensor([[1, 4, 5, 6], [1, 7, 0, 0]])
TARGET_OUT = torch.tensor([[4, 5, 6, 2], [7, 2, 0, 0]])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_equals_log_softmax_of_all_logits_and_is_zero_at_padding(temperature: float) -> None:
    model = EmbeddingModel(8)
    everything = F.log_softmax(model.logits(model(SOURCE, TARGET_IN)) / temperature, -1)
    expected = everything.gather(2, TARGET_OUT[..., None])[..., 0] * (TARGET_OUT != 0)
    torch.testing.assert_close(rescore(model, SOURCE, TARGET_IN, TARGET_OUT, temperature), expected)


def test_padding_changes_nothing() -> None:
    model = EmbeddingModel(8)
    wide_in, wide_out = F.pad(TARGET_IN, (0, 3)), F.pad(TARGET_OUT, (0, 3))
    wide = rescore(model, SOURCE, wide_in, wide_out)
    torch.testing.assert_close(wide[:, :4], rescore(model, SOURCE, TARGET_IN, TARGET_OUT), rtol=0, atol=0)
    assert not wide[:, 4:].any()


def test_never_holds_all_logits() -> None:
    vocabulary = CHUNK_LOGITS // 4
    model = EmbeddingModel(vocabulary)
    target_in = torch.randint(4, vocabulary, (1, 9), generator=torch.Generator().manual_seed(0))
    result = rescore(model, SOURCE[:1], target_in, target_in)
    assert model.most_logits <= CHUNK_LOGITS
    last = F.log_softmax(model.logits(model(SOURCE[:1], target_in[:, -1:])), -1)[0, 0, target_in[0, -1]]
    torch.testing.assert_close(result[0, -1], last)


def test_nothing_to_score_and_temperatures_refused() -> None:
    empty = torch.zeros((2, 0), dtype=torch.int64)
    assert rescore(EmbeddingModel(8), SOURCE, empty, empty).shape == (2, 0)
    with pytest.raises(ValueError, match="temperature"):
        rescore(EmbeddingModel(8), SOURCE, TARGET_IN, TARGET_OUT, temperature=0.0)
