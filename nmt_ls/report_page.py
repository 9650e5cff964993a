"""A report's page: what `report_content` has, as HTML that needs nothing else."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nmt_ls.experiment.atomic import atomic_write
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.records import provenance
from nmt_ls.findings import Finding
from nmt_ls.report_content import (
    REGIME,
    SYMBOLS,
    Part,
    Report,
    counts_of,
    difference_text,
    expectation_text,
    seeds_text,
    word_of,
)
from nmt_ls.report_tables import Table
from nmt_ls.verdicts import Verdict

TEMPLATE = Path(__file__).with_name("report_page.html")
GROUPS = {
    "nmt": "Translation",
    "speech": "Speech",
    "embedded": "The embedded corpus, where the truth is known",
    "vision": "Images",
    "distillation": "Distillation and mutual information",
    "students": "Distillation and mutual information",
    "mutual": "Distillation and mutual information",
}
"""Headings, by the first word of a claim's name."""


def write_page(report: Report, path: Path) -> Path:
    """Write the page. Raises UserError where jinja2 is missing or the folder cannot be written to."""
    try:
        import jinja2
    except ImportError:
        raise UserError("the page needs jinja2; run pip install -e '.[report]'") from None
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    origin = provenance()
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        groups=_groups(report.verdicts),
        counts=counts_of(report.verdicts),
        regime=REGIME,
        symbols=SYMBOLS,
        parts=[_part_context(part) for part in report.parts],
        commit=(origin["commit"] or "unknown")[:12] + ("-dirty" if origin["dirty"] else ""),
        date=origin["time"][:10],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, text)
    return path


def _groups(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Claims under their headings, each with its verdicts."""
    groups = []
    for title, members in itertools.groupby(
        verdicts, key=lambda one: GROUPS.get(one.claim.name.split("-")[0], "Other")
    ):
        claims = []
        for _, found in itertools.groupby(members, key=lambda one: one.claim.name):
            same = list(found)
            claims.append({"claim": same[0].claim, "verdicts": [_verdict_context(one) for one in same]})
        groups.append({"title": title, "claims": claims})
    return groups


def _verdict_context(one: Verdict) -> dict[str, Any]:
    question = one.claim.kind == "question"
    regimes = zip(one.claim.regimes, one.regime_values, strict=False)  # values only where all are recorded
    return {
        "word": word_of(one, question=question),
        "kind": one.word.replace(" ", "-"),
        "symbol": SYMBOLS[one.word],
        "name": one.setting_name or "all",
        "setting": one.setting,
        "why": one.why,
        "regime": "; ".join(
            f"{regime} of hard targets {value:.4f}, at least {regime.at_least:g} wanted" for regime, value in regimes
        ),
        "outcomes": [
            {
                "name": outcome.name,
                "word": word_of(outcome, question=question),
                "kind": outcome.word.replace(" ", "-"),
                "symbol": SYMBOLS[outcome.word],
                "ours": outcome.finding.ours if outcome.finding else "",
                "difference": difference_text(outcome),
                "expected": expectation_text(outcome),
                "seeds": seeds_text(outcome),
                "why": outcome.why,
            }
            for outcome in one.outcomes
        ],
    }


def _part_context(part: Part) -> dict[str, Any]:
    folder = part.results.folder / "figures"
    return {
        "name": part.name,
        "setting": part.setting,
        "tables": [_table_context(table) for table in part.tables],
        "figures": [
            {
                "caption": picture.caption,
                "data": "data:image/svg+xml;base64," + base64.b64encode(picture.svg(folder).encode()).decode(),
                "wide": picture.wide(folder),
            }
            for picture in part.pictures
        ],
        "regimes_missed": part.regimes_missed,
        "signature": part.signature(),
        "commands": part.commands(),
    }


def _table_context(table: Table) -> dict[str, Any]:
    return {
        "title": table.title,
        "headings": [column.heading for column in table.shown],
        "rows": [
            [
                {"text": column.text(row.get(column.key)), "value": _sortable(row.get(column.key))}
                for column in table.shown
            ]
            for row in table.rows
        ],
    }


def _sortable(value: Any) -> str:
    return "" if value is None else str(value.difference if isinstance(value, Finding) else value)
