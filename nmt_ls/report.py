"""python -m nmt_ls.report: what the studies say of the paper's claims, as one page that needs nothing else."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from nmt_ls.claims import read_claims
from nmt_ls.experiment.command_line import UserError, run_command
from nmt_ls.experiment.tables import format_table
from nmt_ls.report_content import Report, difference_text
from nmt_ls.report_page import write_page
from nmt_ls.study_pages import write_study_pages

SHORT_NAMES: dict[str, str] = {}


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Where the results are, what they are held against, and where the page goes.

    results: the folder of all results; every study is a folder in it, with records.jsonl and sentences.parquet.
    claims: what the paper says and how it is tested.
    out: the page.
    study_pages: whether every study's folder gets its README.md, table.csv and figures/ too.
    """

    results: str = "results"
    claims: str = "configs/claims.yaml"
    out: str = "results/report.html"
    study_pages: bool = True

    def __post_init__(self) -> None:
        if not self.out.endswith(".html"):
            raise ValueError(f"out: {self.out} is not the name of an HTML file; let it end in .html")


def check_files(config: ReportConfig) -> None:
    """Raises UserError by key for what cannot be read, or written to; makes the page's folder."""
    if not Path(config.results).is_dir():
        raise UserError(f"results: there is no folder {config.results}; run a study first, or name another")
    if not Path(config.claims).is_file():
        raise UserError(f"claims: there is no file {config.claims}; name a file such as configs/claims.yaml")
    out = Path(config.out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out: {out.parent} cannot be made ({error.strerror}); name another place") from None
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise UserError(f"out: {out} cannot be written; name another place")


def main(config: ReportConfig) -> None:
    check_files(config)
    root = Path(config.results)
    report = Report.read(read_claims(config.claims), root)
    rows = [
        {
            "claim": one.claim.name,
            "setting": one.setting_name,
            "verdict": one.word,
            "difference [95%, or as said]": "; ".join(filter(None, map(difference_text, one.outcomes))),
        }
        for one in report.verdicts
        if one.word != "not run here"
    ]
    print(format_table(rows, list(rows[0])) if rows else "nothing that claims ask for was run")
    for part in report.parts:
        if part.setting.caution and any(row["setting"] == part.name for row in rows):
            print(f"note: {part.name}: {part.setting.caution}")
    print(f"\nnot run here: {sum(one.word == 'not run here' for one in report.verdicts)} of {len(report.verdicts)}")
    written = write_study_pages(report) if config.study_pages else []
    written.append(write_page(report, Path(config.out)))
    print("wrote " + ", ".join(map(str, written)))


if __name__ == "__main__":
    run_command(
        main,
        ReportConfig,
        program="python -m nmt_ls.report",
        description="What the studies say of the paper's claims, as one self-contained page.",
        short_names=SHORT_NAMES,
    )
