"""The rules by which a finding becomes a word, and how many seeds would resolve it."""

from __future__ import annotations

from typing import Any

import pytest

from nmt_ls.claims import Side, Test
from nmt_ls.findings import Finding
from nmt_ls.verdicts import decide, seeds_to_resolve


def finding(difference: float, reach: float, **changes: Any) -> Finding:
    values: dict[str, Any] = {
        "difference": difference, "low": difference - reach, "high": difference + reach,
        "low_90": difference - 0.84 * reach, "high_90": difference + 0.84 * reach, "ours": "", "unit": "",
        "seeds": (3, 3), "seed_sd": 0.4, "sentence_sd": 0.0, "runs": (),
    }  # fmt: skip
    return Finding(**{**values, **changes})


@pytest.mark.parametrize(
    ("expect", "difference", "reach", "word"),
    [
        ("higher", 0.5, 0.4, "reproduced"),
        ("higher", 0.5, 0.6, "unresolved"),  # 0 is inside
        ("higher", 0.2, 0.15, "unresolved"),  # above 0, less than matters, though it might be more
        ("higher", 0.1, 0.05, "not reproduced"),  # above 0, and surely less than matters
        ("higher", 0.0, 0.2, "not reproduced"),
        ("higher", -0.5, 0.2, "not reproduced"),
        ("lower", -0.5, 0.4, "reproduced"),
        ("lower", -0.5, 0.6, "unresolved"),
        ("lower", 0.5, 0.4, "not reproduced"),
        ("not higher", 0.0, 0.2, "reproduced"),
        ("not higher", -1.0, 0.2, "reproduced"),
        ("not higher", 0.0, 0.4, "unresolved"),
        ("not higher", 0.5, 0.4, "not reproduced"),
        ("not lower", 0.0, 0.2, "reproduced"),
        ("not lower", 1.0, 0.2, "reproduced"),
        ("not lower", -0.5, 0.4, "not reproduced"),
        ("not lower", -0.5, 0.6, "unresolved"),
        ("similar", 0.0, 0.29, "reproduced"),
        ("similar", 0.0, 0.34, "reproduced"),  # two one-sided tests at 5% are an interval of 90%
        ("similar", 0.0, 0.4, "unresolved"),
        ("similar", 0.5, 0.4, "not reproduced"),
        ("similar", -0.5, 0.4, "not reproduced"),
        ("similar", 0.29, 0.1, "unresolved"),
    ],
)
def test_the_rules(expect: Any, difference: float, reach: float, word: str) -> None:
    one_sided = Test(statistic="bleu", expect=expect, effect=0.3, baseline=Side(alpha=0.0), treated=Side(alpha=0.1))
    assert decide(one_sided, finding(difference, reach)) == word
    assert decide(one_sided, finding(difference, reach, seeds=(1, 3))) == "unresolved"


def test_seeds_that_would_resolve() -> None:
    test = Test(statistic="bleu", expect="higher", effect=0.5, baseline=Side(alpha=0.0), treated=Side(alpha=0.1))
    few = seeds_to_resolve(test, finding(0.1, 0.6))
    assert few is not None
    assert 10 <= few <= 13  # sd 0.4, a difference of 0.5, power 80%
    more = seeds_to_resolve(test, finding(0.1, 0.6, sentence_sd=0.1))
    assert more is not None
    assert more > few
    assert seeds_to_resolve(test, finding(0.1, 0.6, sentence_sd=0.2)) is None
