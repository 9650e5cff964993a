"""What a report shows, whatever its form: the parts measured, the verdicts, and how each is put in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from nmt_ls.claims import Claims, Setting
from nmt_ls.distillation_report import recipes
from nmt_ls.findings import interval_text
from nmt_ls.report_figures import Picture, setting_pictures
from nmt_ls.report_tables import Table, setting_tables
from nmt_ls.study_results import SettingResults, read_results
from nmt_ls.verdicts import ANSWERS, Outcome, Verdict, Word, regimes_missed, verdicts_of

SYMBOLS: dict[Word, str] = {
    "reproduced": "✓",
    "not reproduced": "✗",
    "unresolved": "?",
    "regime not reached": "○",
    "not run here": "–",
}
"""Verdicts are told apart by symbol and word; colour only helps."""
REGIME = "The paper's claims are about over-confident networks: what needs this regime says nothing of them here."


@dataclass(frozen=True, kw_only=True)
class Part:
    """What was measured in one setting."""

    name: str
    results: SettingResults
    tables: list[Table]
    pictures: list[Picture]
    regimes_missed: list[str]

    @property
    def setting(self) -> Setting:
        return self.results.setting

    def signature(self) -> dict[str, str]:
        """What the recipes of all runs have in common, and the values of what differs."""
        said: dict[str, dict[str, None]] = {}
        for run in self.results.runs(taught=None):
            for key, value in (*_flat(run.signature), *run.search.items()):
                said.setdefault(key, {})[value] = None
        return {key: ", ".join(values) for key, values in said.items() if key not in _NOT_SHOWN}

    def searches(self) -> dict[str, str]:
        """Of the signature, what belongs to translations: beam, length penalty, and sacrebleu's own signatures."""
        runs = self.results.runs(taught=None)
        return {key: value for key, value in self.signature().items() if any(key in run.search for run in runs)}

    def commands(self) -> list[str]:
        """Those that made the figures of the first run of every α, and of every recipe of students."""
        firsts = [self.results.runs(alpha)[0] for alpha in self.results.alphas]
        firsts += [runs[0] for runs in recipes(self.results).values()]
        return list({command: None for run in firsts for command in run.commands})


_NOT_SHOWN = ("temperature", "temperature_is", "cell", "study", "slice", "sacrebleu", "tokens")


def _flat(signature: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in signature.items():
        if isinstance(value, Mapping):
            yield key, " ".join(f"{name} {version}" for name, version in value.items())
        else:
            yield key, str(value)


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that is shown."""

    claims: Claims
    root: Path
    verdicts: list[Verdict]
    parts: list[Part]

    @classmethod
    def read(cls, claims: Claims, root: Path) -> Self:
        """From the folder of all results."""
        results = {name: read_results(setting, root) for name, setting in claims.settings.items()}
        parts = [
            Part(
                name=name,
                results=found,
                tables=setting_tables(found, results.get(found.setting.beside)),
                pictures=list(setting_pictures(name, found, results.get(found.setting.teachers))),
                regimes_missed=regimes_missed(claims, name, found),
            )
            for name, found in results.items()
            if found.runs(taught=True if found.setting.students else None)
        ]
        return cls(claims=claims, root=root, verdicts=list(verdicts_of(claims, results)), parts=parts)

    def of_study(self, folder: str) -> tuple[list[Part], list[Verdict]]:
        """What belongs to one study's folder."""
        parts = [part for part in self.parts if part.setting.results == folder]
        names = {part.name for part in parts}
        return parts, [one for one in self.verdicts if one.setting_name in names]


def word_of(one: Verdict | Outcome, *, question: bool) -> str:
    """The verdict as it is called; with fewer seeds than are planned, or some tests without what they need, it says
    so."""
    word = ANSWERS.get(one.word, one.word) if question else one.word
    if isinstance(one, Outcome):
        return word
    if one.word == "not run here" and any(outcome.finding for outcome in one.outcomes):
        return f"{word} in full"
    return f"{word} (provisional, {one.provisional})" if one.provisional else word


_DIGITS = {"BLEU": ".2f", "squared L2": ".5f", "nats": ".4f", "in T": ".2f"}


def difference_text(outcome: Outcome) -> str:
    """The difference with its interval and unit."""
    finding = outcome.finding
    if finding is None:
        return ""
    similar = outcome.test.expect == "similar"  # is judged by two one-sided tests
    interval = finding.interval_90 if similar else finding.interval
    digits = _DIGITS.get(finding.unit) or digits_of(*interval)
    text = interval_text(finding.difference, *interval, digits, f" {finding.unit}" if finding.unit else "")
    return text + (", 90%" if similar and math.isfinite(finding.low) else "")


def digits_of(low: float, high: float) -> str:
    """A format with which half the width of an interval has two digits; three digits of each number without one."""
    half = (high - low) / 2
    if not math.isfinite(half) or half == 0:
        return ".3g"
    return f".{max(0, 1 - math.floor(math.log10(half)))}f"


def expectation_text(outcome: Outcome) -> str:
    """What the test asks for."""
    effect = f"{outcome.test.effect:g}"
    return f"within {effect}" if outcome.test.expect == "similar" else f"{outcome.test.expect} by {effect}"


def seeds_text(outcome: Outcome) -> str:
    """How many seeds there are."""
    if outcome.finding is None:
        return ""
    counts = outcome.finding.seeds
    return f"{' and '.join(map(str, counts))} seed{'s' if max(counts) > 1 else ''}"


def counts_of(verdicts: Sequence[Verdict]) -> list[tuple[Word, int]]:
    """How many have each word, in the order of SYMBOLS."""
    counts = Counter(one.word for one in verdicts)
    return [(word, counts[word]) for word in SYMBOLS]
