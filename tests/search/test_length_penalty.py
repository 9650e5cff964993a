from __future__ import annotations

import pytest
import torch

from nmt_ls.search import length_penalty


def test_by_hand() -> None:
    lengths = torch.tensor([1, 7])
    torch.testing.assert_close(length_penalty(lengths, "gnmt", 1.0), torch.tensor([1.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(
        length_penalty(lengths, "gnmt", 0.6), torch.tensor([1.0, 1.5157165665103982], dtype=torch.float64)
    )
    torch.testing.assert_close(length_penalty(lengths, "average", 1.0), torch.tensor([1.0, 7.0], dtype=torch.float64))
    torch.testing.assert_close(
        length_penalty(lengths, "average", -0.5), torch.tensor([1.0, 0.3779644730092272], dtype=torch.float64)
    )
    torch.testing.assert_close(length_penalty(lengths, "none", 1.0), torch.ones(2, dtype=torch.float64))
    for kind in ("gnmt", "average"):
        assert length_penalty(lengths, kind, 0.0).tolist() == [1.0, 1.0]


def test_refuses_what_is_not_a_penalty() -> None:
    with pytest.raises(ValueError, match=r"length_penalty_kind.*gnmt.*'wu'"):
        length_penalty(torch.tensor([3]), "wu", 1.0)
    with pytest.raises(ValueError, match="finite"):
        length_penalty(torch.tensor([3]), "gnmt", float("nan"))
