"""Bring your own translations: two systems' outputs of the same source, compared metric by metric.

Files are UTF-8, a detokenised translation a line; line i of each, and of each file of references, belongs to source
line i. No run is needed: any toolkit's output will do.

Shapes: S sentences, F sums of a metric.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.records import Signature, provenance
from nmt_ls.experiment.tables import format_table
from nmt_ls.lines import check_count, read_lines, read_references
from nmt_ls.metrics.statistics import Estimate, crossed_bootstrap
from nmt_ls.metrics.translation import (
    MetricName,
    PairedTestResult,
    paired_test,
    scores_from_statistics,
    sentence_statistics,
)
from nmt_ls.score_records import Figures

COMPARED: dict[MetricName, str] = {"bleu": "BLEU", "chrf": "chrF", "ter": "TER (lower is better)"}
_COLUMNS = {
    "metric": "",
    "ours": ".2f",
    "baseline": ".2f",
    "difference": "+.2f",
    "95% low": "+.2f",
    "95% high": "+.2f",
    "p bootstrap": ".4f",
    "p randomisation": ".4f",
}


@dataclass(frozen=True, kw_only=True)
class GivenTranslations:
    """S translations of two systems, with one list of references each."""

    ours: list[str]
    baseline: list[str]
    references: list[list[str]]


def read_translations(ours: str, baseline: str, references: Sequence[str]) -> GivenTranslations:
    """Raises UserError for files that cannot be read, hold fewer than two lines, or do not pair up."""
    lines, others, columns = read_lines(ours), read_lines(baseline), read_references(references)
    if len(lines) < 2:
        raise UserError(f"{ours}: has {len(lines)} lines; a comparison resamples them, and needs two at least")
    for path, column in zip([baseline, *references], [others, *columns], strict=True):
        check_count(path, column, len(lines), other=ours)
    rows = [list(row) for row in zip(*columns, strict=True)]
    return GivenTranslations(ours=lines, baseline=others, references=rows)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One metric of both systems. difference: ours minus the baseline's, with its bootstrap sd over sentences."""

    metric: MetricName
    difference: Estimate
    bootstrap: PairedTestResult
    randomisation: PairedTestResult

    def figures(self) -> Figures:
        """By the names under which they are recorded; sacrebleu's signatures beside the p-values."""
        name, tests = self.metric, {"bootstrap": self.bootstrap, "randomisation": self.randomisation}
        return Figures(
            values={
                name: self.bootstrap.system,
                f"{name}_baseline": self.bootstrap.baseline,
                f"{name}_difference": self.difference.value,
                f"{name}_difference_low": self.difference.low,
                f"{name}_difference_high": self.difference.high,
                **{f"{name}_{test}_p_value": found.p_value for test, found in tests.items()},
            },
            recipe={"resamples": self.difference.resamples},
            signatures={f"{name}_{test}_p_value": found.signature for test, found in tests.items()},
        )

    def row(self) -> dict[str, Any]:
        """Of a table for terminals."""
        return dict(zip(_COLUMNS, [COMPARED[self.metric], *self.figures().values.values()], strict=True))


def compare(given: GivenTranslations) -> list[Comparison]:
    """BLEU, chrF and TER: the interval of the difference by bootstrap, and sacrebleu's two paired tests."""
    found = []
    with tqdm(total=3 * len(COMPARED), desc="comparing", unit=" tests", leave=False, disable=None) as bar:
        for metric in COMPARED:
            difference = bootstrapped_difference(given, metric)
            bar.update()
            tests: dict[str, PairedTestResult] = {}
            for method in ("bootstrap", "randomisation"):
                results = paired_test(given.baseline, given.ours, given.references, method, metrics=(metric,))
                tests[method] = results[metric]
                bar.update()
            found.append(Comparison(metric=metric, difference=difference, **tests))
    return found


def bootstrapped_difference(given: GivenTranslations, metric: MetricName) -> Estimate:
    """Our corpus score minus the baseline's; one resample of sentences serves both systems."""
    baseline_1SF, ours_1SF = (
        sentence_statistics(metric, hypotheses, given.references)[None] for hypotheses in (given.baseline, given.ours)
    )
    return crossed_bootstrap(baseline_1SF, ours_1SF, partial(scores_from_statistics, metric), resample_seeds=False)


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """A metric a row, for a terminal."""
    return format_table([one.row() for one in comparisons], _COLUMNS)


def translations_recipe(ours: str, baseline: str, references: Sequence[str]) -> dict[str, Any]:
    """The signature of these figures: the files by name and checksum, and what computed them."""
    files = {"translations": [ours], "baseline": [baseline], "reference": references}
    extras = {key: ", ".join(Path(path).name for path in paths) for key, paths in files.items()}
    sums = {f"{key}_sha256": ", ".join(map(_checksum, paths)) for key, paths in files.items()}
    return Signature.of(provenance(), extras={**extras, **sums}).to_dict()


def _checksum(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
