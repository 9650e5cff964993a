"""The rules by which a finding becomes a word, and how many seeds would resolve it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from nmt_ls.claims import Side, Test
from nmt_ls.findings import Finding
from nmt_ls.verdicts import decide, seeds_to_resolve


def finding(difference: float, reach: float, **changes: Any) -> Finding:
    values: dict[str, Any] = {"ours": "", "unit": "", "seeds": (3, 3), "fixed_sd": 0.0, "runs": ()}
    values |= {"difference": difference, "sd": reach / 1.959964, "degrees": math.inf}
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
        ("similar", 0.0, 0.35, "reproduced"),  # two one-sided tests at 5% are an interval of 90%
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
    sd = 0.4 * math.sqrt(2 / 3)  # of a difference of three seeds a side that vary by 0.4
    assert finding(0.1, 1.96 * sd).seed_sd == pytest.approx(0.4, rel=1e-3)
    few = seeds_to_resolve(test, finding(0.1, 1.96 * sd))
    assert few is not None
    assert 10 <= few <= 13  # sd 0.4, a difference of 0.5, power 80%
    more = seeds_to_resolve(test, finding(0.1, 1.96 * math.hypot(sd, 0.1), fixed_sd=0.1))
    assert more is not None
    assert more > few
    assert seeds_to_resolve(test, finding(0.1, 1.96 * math.hypot(sd, 0.2), fixed_sd=0.2)) is None


def test_seeds_count_as_they_do_in_the_interval() -> None:
    """An interval that is too wide is never said to have seeds enough."""
    test = Test(statistic="bleu", expect="lower", effect=0.3, baseline=Side(alpha=0.0), treated=Side(alpha=0.1))
    for seeds in ((3,), (3, 3), (5, 2)):
        wide = finding(-0.23, 0.37, seeds=seeds)
        assert decide(test, wide) == "unresolved"
        needed = seeds_to_resolve(test, wide)
        assert needed is not None
        assert needed > min(seeds)


def test_few_degrees_of_freedom_are_never_seeds_enough() -> None:
    test = Test(statistic="bleu", expect="lower", effect=0.3, baseline=Side(alpha=0.0), treated=Side(alpha=0.1))
    two = finding(-0.2, 0.04 * 1.959964, degrees=1.0, seeds=(2, 2))
    assert two.high - two.low > 1.0  # t is 12.7
    assert decide(test, two) == "unresolved"
    needed = seeds_to_resolve(test, two)
    assert needed is not None
    assert needed >= 3


def test_one_seed_has_no_interval() -> None:
    alone = finding(0.5, 0.1, seeds=(1, 3))
    assert (alone.interval, alone.interval_90) == ((-math.inf, math.inf), (-math.inf, math.inf))
    assert alone.difference == 0.5
