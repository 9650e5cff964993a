"""A report's page, and the pages of its studies: what `verdicts`, tables and figures say, as HTML and as Markdown."""

from __future__ import annotations

import base64
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import pandas as pd

from nmt_ls.claims import Claims, Setting
from nmt_ls.distillation_report import recipes
from nmt_ls.experiment.atomic import atomic_write
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.records import provenance
from nmt_ls.findings import Finding, interval_text
from nmt_ls.metrics.plots import save_figure
from nmt_ls.report_figures import Picture, setting_pictures
from nmt_ls.report_tables import Table, setting_tables
from nmt_ls.study_results import SettingResults, read_results
from nmt_ls.verdicts import ANSWERS, Outcome, Verdict, Word, regimes_missed, verdicts_of

TEMPLATE = Path(__file__).with_name("report_page.html")
SYMBOLS: dict[Word, str] = {
    "reproduced": "✓",
    "not reproduced": "✗",
    "unresolved": "?",
    "regime not reached": "○",
    "not run here": "–",
}
"""Verdicts are told apart by symbol and word; colour only helps."""
REGIME = "The paper's claims are about over-confident networks: what needs this regime says nothing of them here."
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
_IN_TABLE = (
    *("split", "beam", "length_penalty", "sacrebleu: bleu", "sacrebleu: chrf", "bins", "dropout", "spread", "prior"),
    *("corpus", "checkpoint", "precision", "training_precision", "note", "versions", "commit", "training_commit"),
)
"""Of a signature, what goes with every row of table.csv."""


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
        counts=_counts(report.verdicts),
        regime=REGIME,
        symbols=SYMBOLS,
        parts=[_part_context(part) for part in report.parts],
        commit=(origin["commit"] or "unknown")[:12] + ("-dirty" if origin["dirty"] else ""),
        date=origin["time"][:10],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, text)
    return path


def _counts(verdicts: Sequence[Verdict]) -> list[tuple[Word, int]]:
    counts = Counter(one.word for one in verdicts)
    return [(word, counts[word]) for word in SYMBOLS]


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
    yield "; ".join(f"{SYMBOLS[word]} {word}: {count}" for word, count in _counts(verdicts) if count) + ".\n"
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
