"""The pages of a report's studies: what `report_content` has of each, as Markdown, a table and figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from nmt_ls.experiment.atomic import atomic_write
from nmt_ls.findings import Finding
from nmt_ls.metrics.plots import save_figure
from nmt_ls.report_content import REGIME, SYMBOLS, Part, Report, counts_of, difference_text, word_of
from nmt_ls.verdicts import Verdict

_IN_TABLE = (
    *("split", "beam", "length_penalty", "sacrebleu: bleu", "sacrebleu: chrf", "bins", "dropout", "spread", "prior"),
    *("corpus", "checkpoint", "precision", "training_precision", "note", "versions", "commit", "training_commit"),
)
"""Of a signature, what goes with every row of table.csv."""


def write_study_pages(report: Report) -> list[Path]:
    """README.md, table.csv and figures/report-*.{png,svg} of every study of which something was measured."""
    written = []
    for folder in dict.fromkeys(part.setting.results for part in report.parts):
        parts, verdicts = report.of_study(folder)
        home = report.root / folder
        atomic_write(home / "table.csv", _all_rows(parts).to_csv(index=False))
        for part in parts:
            for picture in part.pictures:
                if picture.figure is not None:
                    drawings = home / "figures"
                    save_figure(picture.figure, drawings / picture.name, svg=partial(picture.svg, drawings))
        beside = sorted(path.name for path in home.glob("*.md") if path.name != "README.md")
        atomic_write(home / "README.md", "\n".join(_study_markdown(parts, verdicts, beside)) + "\n")
        written += [home / "README.md", home / "table.csv"]
    return written


def _all_rows(parts: Sequence[Part]) -> pd.DataFrame:
    """The rows of all tables, each with its setting, the table's title, and the recipe that the setting shares."""
    frames = [
        pd.DataFrame([_numbers(row) for row in table.rows]).assign(
            setting=part.name, table=table.title, **_shared(part.signature())
        )
        for part in parts
        for table in part.tables
    ]
    rows = pd.concat(frames or [pd.DataFrame({"setting": [], "table": []})])
    last = [name for name in rows.columns if name.startswith("recipe: ")]
    return rows[
        ["setting", "table", *(name for name in rows.columns if name not in ("setting", "table", *last)), *last]
    ]


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """A table's row with differences as three numbers."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Finding):
            low, high = (end if math.isfinite(end) else None for end in value.interval)
            found |= {name: value.difference, f"{name} low": low, f"{name} high": high}
        else:
            found[name] = value
    return found


def _shared(signature: Mapping[str, str]) -> dict[str, str]:
    return {f"recipe: {key}": signature[key] for key in _IN_TABLE if key in signature}


def _study_markdown(parts: Sequence[Part], verdicts: Sequence[Verdict], beside: Sequence[str]) -> Iterator[str]:
    """beside: pages in the study's folder that people wrote."""
    yield f"# {parts[0].setting.results}: what was measured\n"
    images = any(part.results.of_images for part in parts)
    each = "image is in `examples.parquet`" if images else "sentence is in `sentences.parquet`"
    yield (
        "Written by `python -m nmt_ls.report`; how each claim is tested is in `configs/claims.yaml`. Every figure with "
        "its recipe is a line of `records.jsonl`, and `table.csv` has all means over seeds. "
        f"What belongs to each {each}; that of the embedded corpora is not kept with them, as their claims are of "
        "recorded figures.\n"
    )
    if beside:
        yield f"Besides, written by hand: {', '.join(f'[{name}]({name})' for name in beside)}.\n"
    yield "Made by:\n\n```bash"
    yield from dict.fromkeys(part.setting.command for part in parts)
    yield "python -m nmt_ls.report\n```\n"
    yield "## Verdicts\n"
    yield "; ".join(f"{SYMBOLS[word]} {word}: {count}" for word, count in counts_of(verdicts) if count) + ".\n"
    yield from _overview(parts, verdicts)
    yield "\n### In numbers\n"
    yield "| setting | claim | verdict | ours | difference [95%, or as said] | why |\n|---|---|---|---|---|---|"
    for one in verdicts:
        caution = f" ({one.setting.caution})" if one.setting and one.setting.caution else ""
        yield _markdown_row(
            [
                one.setting_name + caution,
                one.claim.title,
                _marked(one),
                "<br>".join(outcome.finding.ours for outcome in one.outcomes if outcome.finding),
                "<br>".join(difference_text(outcome) for outcome in one.outcomes if outcome.finding),
                one.why,
            ]
        )
    for part in parts:
        yield f"\n## {part.setting.title}\n"
        if part.setting.caution:
            yield f"Note: {part.setting.caution}.\n"
        if signature := [f"{key.removeprefix('sacrebleu: ')} {value}" for key, value in part.searches().items()]:
            yield f"Translations: {'; '.join(signature)}.\n"
        for why in part.regimes_missed:
            yield f"{SYMBOLS['regime not reached']} *Regime not reached: {why}.* {REGIME}\n"
        for table in part.tables:
            yield f"**{table.title}**\n"
            yield _markdown_row([column.heading for column in table.shown])
            yield "|" + "---|" * len(table.shown)
            for row in table.rows:
                yield _markdown_row([column.text(row.get(column.key)) for column in table.shown])
            yield ""
        for picture in part.pictures:
            yield f"![{picture.caption}](figures/{picture.name}.png)\n\n*{picture.caption}*\n"


def _overview(parts: Sequence[Part], verdicts: Sequence[Verdict]) -> Iterator[str]:
    """A row a claim, a column a setting, of verdicts alone."""
    said = {(one.claim.name, one.setting_name): _marked(one) for one in verdicts}
    titles = {one.claim.name: one.claim.title for one in verdicts}
    columns = [part.name for part in parts if any(part.name == setting for _, setting in said)]
    yield _markdown_row(["claim", *columns])
    yield "|" + "---|" * (1 + len(columns))
    for claim, title in titles.items():
        yield _markdown_row([title, *(said.get((claim, column), "") for column in columns)])


def _marked(one: Verdict) -> str:
    return f"{SYMBOLS[one.word]} {word_of(one, question=one.claim.kind == 'question')}"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
