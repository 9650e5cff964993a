"""From findings to verdicts: what was found is held against what a claim expects (rules in configs/claims.yaml)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from nmt_ls.claim_statistics import evaluate
from nmt_ls.claims import Claim, Claims, Expectation, Regime, Setting, Test
from nmt_ls.findings import LEAST_SEEDS, Finding, runs_of
from nmt_ls.metrics.statistics import seeds_needed
from nmt_ls.study_results import NotMeasuredError, Run, SettingResults, scored_values

Word = Literal["reproduced", "not reproduced", "unresolved", "regime not reached", "not run here"]
ANSWERS: dict[Word, str] = {"reproduced": "yes", "not reproduced": "no"}
"""What verdicts are called where the claim is a question of ours."""
POWER_REACH = 1.959964 + 0.841621
"""Standard errors that a difference must span to be found with probability 80% at 5%, two-sided."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One test's verdict; seeds: how many a side would resolve it, where that is known."""

    name: str
    test: Test
    word: Word
    why: str
    finding: Finding | None = None
    seeds: int | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim's verdict in one setting (None: it is tested in none).

    regime_values: of the claim's regimes, in its order; empty where they are not recorded.
    """

    claim: Claim
    setting_name: str
    setting: Setting | None
    word: Word
    why: str
    outcomes: tuple[Outcome, ...] = ()
    regime_values: tuple[float, ...] = ()
    provisional: str = ""  # or "3 of 5 seeds"


def decide(test: Test, finding: Finding) -> Word:
    """What a finding means for what the test expects."""
    if min(finding.seeds) < LEAST_SEEDS or finding.edge:
        return "unresolved"
    expect, effect = test.expect, test.effect
    if expect == "similar":
        low_90, high_90 = finding.interval_90
        inside = -effect < low_90 and high_90 < effect
        apart = (finding.low > 0 or finding.high < 0) and abs(finding.difference) >= effect
        return "reproduced" if inside else "not reproduced" if apart else "unresolved"
    sign = 1 if expect in ("higher", "not higher") else -1
    low, high = sorted((sign * finding.low, sign * finding.high))
    there = low > 0 and sign * finding.difference >= effect
    absent = high < effect
    if expect.startswith("not "):
        there, absent = absent, there
    return "reproduced" if there else "not reproduced" if absent else "unresolved"


def seeds_to_resolve(test: Test, finding: Finding) -> int | None:
    """Seeds a side so that a difference of the smallest effect that matters would be found (power 80%, level 5%).

    None where no number of seeds is enough: the sentences (or images, or samples) alone leave too much uncertainty.
    Seeds vary as they do in the finding's own interval; while that is wider than the effect, more of them are wanted.
    """
    left = test.effect**2 - (POWER_REACH * finding.fixed_sd) ** 2
    if left <= 0:
        return None
    needed = seeds_needed(finding.seed_sd, math.sqrt(left), paired=len(finding.seeds) == 1)
    wide = finding.high - finding.difference >= test.effect  # few seeds have few degrees of freedom
    return max(needed, min(finding.seeds) + 1) if wide else needed


def judge(name: str, test: Test, results: SettingResults) -> Outcome:
    """One test in one setting."""
    try:
        finding = evaluate(test, results)
    except NotMeasuredError as error:
        return Outcome(name=name, test=test, word="not run here", why=str(error))
    word = decide(test, finding)
    seeds, why = None, _REASONS[test.expect, word]
    if word == "not reproduced" and test.expect == "higher" and finding.high < 0:
        why = "lower instead"
    elif word == "not reproduced" and test.expect == "lower" and finding.low > 0:
        why = "higher instead"
    if word == "unresolved":
        if min(finding.seeds) < LEAST_SEEDS:
            seeds, why = LEAST_SEEDS, "one seed does not show how much seeds differ"
        elif finding.edge:
            why = f"at the edge of the grid of temperatures: {finding.edge}"
        elif (seeds := seeds_to_resolve(test, finding)) is None:
            of_samples = test.statistic == "record_error"
            few = "there are too few samples" if of_samples else f"the split has too few {results.unit}s"
            why = f"{few} to tell a difference that small, whatever the number of seeds"
        elif seeds <= min(finding.seeds):
            why = f"seeds enough to tell {test.effect:g} from none, but the difference may lie between them"
            seeds = None
        else:
            why = f"{seeds} seeds a side would tell a difference of {test.effect:g} from none"
    if test.premise and word == "not reproduced":
        why = f"{test.premise}: {why}"
    used = {run.name for run in finding.runs}
    lacking = [run.name for side in test.sides for run in runs_of(results, side) if run.name not in used]
    if lacking:
        why += f"; without {', '.join(dict.fromkeys(lacking))}, which lack figures or {results.unit}s"
    if test.added:
        why += f" (a test added {test.added})"
    return Outcome(name=name, test=test, word=word, why=why, finding=finding, seeds=seeds)


_REASONS: dict[tuple[Expectation, Word], str] = {
    ("higher", "reproduced"): "above 0, and large enough to matter",
    ("higher", "not reproduced"): "too small to matter",
    ("lower", "reproduced"): "below 0, and large enough to matter",
    ("lower", "not reproduced"): "too small to matter",
    ("not higher", "reproduced"): "not higher by what matters",
    ("not higher", "not reproduced"): "higher, and by enough to matter",
    ("not lower", "reproduced"): "not lower by what matters",
    ("not lower", "not reproduced"): "lower, and by enough to matter",
    ("similar", "reproduced"): "the same to within what matters",
    ("similar", "not reproduced"): "different by what matters or more",
    **{
        (expect, "unresolved"): ""  # said case by case
        for expect in ("higher", "lower", "not higher", "not lower", "similar")
    },
}


def combine(outcomes: Sequence[Outcome]) -> Word:
    """A claim holds if all of its tests do, and fails if one does; not where its premise fails: then there is nothing
    that it could be about."""
    if any(outcome.test.premise and outcome.word == "not reproduced" for outcome in outcomes):
        return "regime not reached"
    words = {outcome.word for outcome in outcomes}
    for word in ("not run here", "not reproduced", "unresolved"):
        if word in words:
            return word
    return "reproduced"


def regime_value(regime: Regime, results: SettingResults) -> float:
    """The regime's figure, mean over the hard-target runs at temperature 1 on the reported split."""
    return _hard_mean(regime, regime.figure, str(regime), results)


def hard_runs(regime: Regime, results: SettingResults) -> list[Run]:
    """Those whose records say whether the regime is reached: with hard targets, or the students of such teachers."""
    if not regime.of_teachers:
        return results.runs(0.0)
    return [run for run in results.runs(taught=True) if run.signature["teacher_alpha"] == 0 and not run.of_student]


def _hard_mean(regime: Regime, figure: str, title: str, results: SettingResults) -> float:
    values = scored_values(hard_runs(regime, results), figure)
    if not values:
        raise NotMeasuredError(f"{title} of hard targets, which says whether the regime is reached, is not recorded")
    return sum(values) / len(values)


def outside(regime: Regime, value: float, results: SettingResults) -> str:
    """Why the hard-target runs, of which `value` is the regime's figure, are not in the regime; empty if they are."""
    if value < regime.at_least:
        return f"{regime} of hard targets is {value:.4f}, below {regime.at_least:g}"
    if regime.over:
        over, under = (
            _hard_mean(regime, name, name.replace("_", "-"), results) for name in (regime.over, regime.under)
        )
        if over <= under:
            names = regime.over.replace("_", "-"), regime.under.replace("_", "-")
            return f"{names[0]} of hard targets is {over:.4f}, no more than {names[1]}, {under:.4f}"
    return ""


def regimes_missed(claims: Claims, name: str, results: SettingResults) -> list[str]:
    """Why a setting is outside the regimes of the claims that are tested in it, as far as that is recorded."""
    missed: dict[str, None] = {}
    for regime in dict.fromkeys(one for claim in claims.claims if name in claim.settings for one in claim.regimes):
        with suppress(NotMeasuredError):
            if why := outside(regime, regime_value(regime, results), results):
                missed[why] = None
    return list(missed)


def seeds_missing(claim: Claim, setting: Setting, results: SettingResults, outcomes: Sequence[Outcome]) -> str:
    """'3 of 5 seeds' where fewer were found than are planned, by a test or of the hard targets of a regime."""
    found = [min(outcome.finding.seeds) for outcome in outcomes if outcome.finding is not None]
    for regime in claim.regimes:
        found.append(
            len({run.seed for run in hard_runs(regime, results) if regime.figure in run.scored.get(False, {})})
        )
    return f"{min(found)} of {setting.seeds} seeds" if found and min(found) < setting.seeds else ""


def verdict(claim: Claim, setting_name: str, setting: Setting, results: SettingResults) -> Verdict:
    """A claim in a setting."""

    def said(word: Word, why: str, outcomes: Sequence[Outcome] = (), values: Sequence[float] = ()) -> Verdict:
        provisional = "" if word == "not run here" else seeds_missing(claim, setting, results, outcomes)
        if claim.changed and word != "not run here":
            why = f"{why} ({claim.changed})"
        return Verdict(
            claim=claim,
            setting_name=setting_name,
            setting=setting,
            word=word,
            why=f"provisional, {provisional}: {why}" if provisional else why,
            provisional=provisional,
            outcomes=tuple(outcomes),
            regime_values=tuple(values),
        )

    if not results.runs(taught=None):
        silent = f"; {', '.join(results.silent)} do not say their dropout" if results.silent else ""
        return said("not run here", f"no records of {setting.runs} in {results.folder}{silent}")
    outcomes = [judge(name, test, results) for name, test in claim.tests.items()]
    try:
        values = [regime_value(regime, results) for regime in claim.regimes]
        short = [outside(regime, value, results) for regime, value in zip(claim.regimes, values, strict=True)]
    except NotMeasuredError as error:
        return said("not run here", str(error), outcomes)
    if any(short):
        return said("regime not reached", "; ".join(why for why in short if why), outcomes, values)
    word = combine(outcomes)
    ours = "not reproduced" if word == "regime not reached" else word  # of a premise
    deciding = [outcome for outcome in outcomes if outcome.word == ours]
    why = "; ".join(dict.fromkeys(f"{outcome.name}: {outcome.why}" for outcome in deciding))
    return said(word, why + beforehand(claim, outcomes, word), outcomes, values)


def beforehand(claim: Claim, outcomes: Sequence[Outcome], word: Word) -> str:
    """What the verdict was by the tests that were written before the runs, where those added later change it."""
    first = [outcome for outcome in outcomes if not outcome.test.added]
    if not first or combine(first) == word:
        return ""
    was = combine(first)
    return f"; by the tests written beforehand alone: {ANSWERS.get(was, was) if claim.kind == 'question' else was}"


def verdicts_of(claims: Claims, results: Mapping[str, SettingResults]) -> Iterator[Verdict]:
    """Every claim in every setting in which it is tested, in the order of the file; results by the setting's name."""
    for claim in claims.claims:
        if claim.not_run:
            yield Verdict(claim=claim, setting_name="", setting=None, word="not run here", why=claim.not_run)
        for name in claim.settings:
            yield verdict(claim, name, results[name].setting, results[name])
