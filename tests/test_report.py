"""The report: a page that needs nothing else, the pages of its studies, and figures of real runs that reach it."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_up_study import BOTH, Translator, write_study

from nmt_ls.claims import Claims, read_claims
from nmt_ls.experiment.command_line import load_config, run_command
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.losses import LossConfig
from nmt_ls.metrics.calibration import ece_from_sums
from nmt_ls.metrics.statistics import ratio_of_sums
from nmt_ls.report import ReportConfig, main
from nmt_ls.report_content import Report, digits_of
from nmt_ls.report_page import write_page
from nmt_ls.reporting import ScoreConfig
from nmt_ls.reporting import score as score_run
from nmt_ls.score_records import store
from nmt_ls.study_results import read_results
from nmt_ls.sweeping import SweepConfig, sweep
from nmt_ls.training import TrainConfig, train

SHIPPED = Path(__file__).parents[1] / "configs" / "claims.yaml"


def test_an_interval_and_its_difference_have_the_same_digits() -> None:
    for low, high, shown in (
        (-4.34, -4.26, ".3f"),
        (0.113, 0.134, ".3f"),
        (-0.0003, 0.00001, ".5f"),
        (-30.0, 41.0, ".0f"),
    ):
        assert digits_of(low, high) == shown
    assert digits_of(float("-inf"), float("inf")) == digits_of(2.0, 2.0) == ".3g"


class Page(HTMLParser):
    """What the tests ask of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.rows: list[list[str]] = []
        self.headings: list[int] = []  # sortable columns of each table
        self.wrong: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [str(given["id"])] if "id" in given else []
        self.links += [str(given["href"])] if "href" in given else []
        self.sources += [str(given["src"])] if "src" in given else []
        if tag == "table":
            self.headings.append(0)
        if tag == "button" and self.open[-1] == "th":
            self.headings[-1] += 1
        if tag == "tr" and "tbody" in self.open:
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append(str(given["data-value"]))
        if tag == "img" and not given.get("alt"):
            self.wrong.append("a picture without words")
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            self.wrong.append(f"</{tag}> closes {self.open[-1:]}")


def hard(alpha: float = 0.0, **changes: Any) -> Translator:
    usual: dict[str, Any] = {
        "alpha": alpha,
        "gap": lambda t: 0.25 * (1 / t - 0.7),
        "precision": lambda t: 0.40 - 0.1 * (t - 1.1) ** 2,
        "scored": {
            "exact_ece": 0.06 - alpha / 4,
            "kl_to_truth": 0.2 + alpha,
            "bleu": 40.0 + alpha,
            "nll": 2.0,
            **{
                f"estimated_ece {name} {size}": 0.06 + 10 / size
                for name in ("sweep", "debiased")
                for size in (1000, 9000)
            },
            "estimated_ece_sd sweep 1000": 0.01,
        },
    }
    return Translator(**{**usual, **changes})


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two settings measured, one in part (a single seed, hard targets only); the others not."""
    root = tmp_path_factory.mktemp("results")
    (root / "multi30k").mkdir()
    (root / "multi30k" / "pilots.md").write_text("# Pilots\n")
    smooth = hard(0.1, gap=lambda t: 0.25 * (1 / t - 1), precision=lambda t: 0.43 - 0.1 * (t - 1) ** 2)
    write_study(root / "multi30k", [hard(), smooth], prefix="mini-de-d0.3", sentences=200, splits=BOTH)
    write_study(root / "multi30k", [hard(seeds=(1,))], prefix="mini-de-d0.1", sentences=50, dropout=0.1, splits=BOTH)
    alphas = [hard(alpha, seeds=(1, 2)) for alpha in (0.0, 0.05, 0.1)]
    write_study(root / "grammar", alphas, prefix="grammar-n10000-d0.1", sentences=50, dropout=0.1, splits=BOTH)
    return root


@pytest.fixture(scope="module")
def written(results: Path) -> str:
    """The page of these results, and their study pages."""
    main(ReportConfig(results=str(results), claims=str(SHIPPED), out=str(results / "report.html")))
    return (results / "report.html").read_text(encoding="utf-8")


def test_the_page_needs_nothing_else(written: str) -> None:
    page = Page(written)
    assert (page.wrong, page.open) == ([], [])
    # sweep, reliability and estimators of the first setting, the last two of the second (hard targets alone); of the
    # third these and one against alpha
    assert len(page.sources) == (1 + 1 + 2) + (1 + 1) + (1 + 1 + 1 + 2)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    assert all(link.startswith("#") for link in page.links)
    assert "http" not in re.sub(r"data:image[^\"]*", "", written)
    assert len(set(page.ids)) == len(page.ids)
    assert {link[1:] for link in page.links} <= set(page.ids)  # every verdict leads to its reasons


def test_verdicts_come_first_with_all_that_a_claim_needs(written: str) -> None:
    order = [written.index(f'id="{name}"') for name in ("verdicts", "why", "figures", "tables", "signatures")]
    assert order == sorted(order)
    section = re.search(r'<section class="setting" id="nmt-bleu-multi30k-de">(.*?)</section>', written, re.DOTALL)
    assert section is not None
    text = section.group(1)
    assert "✓ reproduced" in text
    assert re.search(r"Ours: \d\d\.\d\d \(α = 0\) → \d\d\.\d\d \(α = 0\.1\)", text)
    assert re.search(r"\+[2-5]\.\d\d \[\+\d\.\d\d, \+\d\.\d\d\] BLEU", text)
    assert "wanted: higher by 0.3; 3 and 3 seeds" in text
    assert "python -m nmt_ls.study run configs/studies/multi30k.yaml" in text
    assert "BLEU 25.3 without, 25.8 with label smoothing" in written
    partly = re.search(r'id="nmt-bleu-multi30k-de-d0.1">(.*?)</section>', written, re.DOTALL)
    assert partly is not None
    assert "not run here" in partly.group(1)
    assert "no run with α = 0.1" in partly.group(1)


def test_tables_can_be_sorted(written: str) -> None:
    page = Page(written)
    assert len(page.headings) == 4 * 3  # recipes, temperatures, translations, estimators, of three settings
    assert min(page.headings) > 4
    assert {len(row) for row in page.rows} <= set(page.headings)
    assert 'aria-sort", falling' in written  # said to those who do not see it


def test_questions_are_answered(written: str) -> None:
    answer = re.search(r'id="embedded-towards-truth-embedded">(.*?)</section>', written, re.DOTALL)
    assert answer is not None
    assert "–" in answer.group(1) or "✗ no" in answer.group(1)


def test_pages_of_studies(results: Path, written: str) -> None:
    assert written
    text = (results / "multi30k" / "README.md").read_text()
    assert re.search(r"^\| claim \| multi30k-de \| multi30k-de-d0\.1 \|$", text, re.MULTILINE)
    assert re.search(r"^\| Label smoothing raises BLEU \| ✓ reproduced[^|]* \| – not run here \|$", text, re.MULTILINE)
    table = pd.read_csv(results / "multi30k" / "table.csv")
    assert table[table.table.str.startswith("Temperatures")].setting.tolist() == [
        "multi30k-de",
        "multi30k-de",
        "multi30k-de-d0.1",
    ]
    table = table[table.table == "Recipes, means over seeds"]
    assert table.temperature.str.startswith("fitted").tolist() == [False, True] * 3
    table = table[table.temperature == "1"]
    assert table.setting.tolist() == ["multi30k-de", "multi30k-de", "multi30k-de-d0.1"]
    assert table.seeds.tolist() == [3, 3, 1]
    assert table.ece.tolist()[0] > table.ece.tolist()[1]
    assert table["ece sd"].isna().tolist() == [False, False, True]
    readme = (results / "multi30k" / "README.md").read_text(encoding="utf-8")
    assert "Translations: beam 5; length_penalty average:1; bleu nrefs:1|made:up." in readme
    assert "nrefs:1|made:up" in written
    assert table["recipe: sacrebleu: bleu"].tolist() == ["nrefs:1|made:up"] * 3
    assert "| multi30k-de | Label smoothing raises BLEU | ✓ reproduced (provisional, 3 of 5 seeds) |" in readme
    for name in re.findall(r"\((figures/\S+\.png)\)", readme):
        assert (results / "multi30k" / name).exists()
    assert "figures/report-multi30k-de-sweep.png" in readme
    assert "written by hand: [pilots.md](pilots.md)." in readme
    assert "written by hand" not in (results / "grammar" / "README.md").read_text(encoding="utf-8")
    assert not (results / "tatoeba").exists()


def test_nothing_measured_is_a_page_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(ReportConfig(results=str(tmp_path), claims=str(SHIPPED), out=str(tmp_path / "deep" / "report.html")))
    text = (tmp_path / "deep" / "report.html").read_text(encoding="utf-8")
    assert Page(text).wrong == []
    assert "✓ reproduced: 0" in text
    assert "nothing that claims ask for was run" in capsys.readouterr().out


def test_words_of_claims_are_not_markup(tmp_path: Path) -> None:
    claims = read_claims(SHIPPED)
    first = dataclasses.replace(claims.claims[0], title="ECE < 0.1 & <b>falling</b>")
    report = Report.read(Claims(settings=claims.settings, claims=(first,)), tmp_path)
    text = write_page(report, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "ECE &lt; 0.1 &amp; &lt;b&gt;falling" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--results", "nowhere"], "error: results: there is no folder nowhere"),
        (["--claims", "nowhere.yaml"], "error: claims: there is no file nowhere.yaml; name"),
        (
            ["--claims", str(SHIPPED), "--out", "a-file/page.html"],
            "error: out: a-file cannot be made (File exists); name another place",
        ),
        (
            ["--claims", str(SHIPPED), "--out", "a-file/in/page.html"],
            "error: out: a-file/in cannot be made (Not a directory); name another place",
        ),
        (["--out", "report.txt"], "error: out: report.txt is not the name of an HTML file"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "a-file").touch()
    monkeypatch.setattr(Report, "read", lambda *_: pytest.fail("read the results before it looked"))
    with pytest.raises(SystemExit) as left:
        run_command(main, ReportConfig, program="report", description="", argv=words)
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1


def test_figures_of_real_runs_reach_it(
    small_run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs trained, scored and swept as a study does it."""
    config = load_config(TrainConfig, small_run.read_config())
    monkeypatch.chdir(tmp_path)
    for alpha in (0.0, 0.1):
        run, results = f"mini-de-d0.3-ls{alpha}-s1", "results/multi30k"
        changes: dict[str, Any] = {
            "out": run,
            "loss": LossConfig(alpha=alpha),
            "model": dataclasses.replace(config.model, dropout=0.3),
            "checkpoints": ("last",),
            "validation_sentences": 0,
        }
        train(dataclasses.replace(config, **changes))
        for temperature in (None, "fitted"):
            asked = ScoreConfig(
                run=run,
                checkpoint="last",
                temperature=temperature,  # type: ignore[arg-type]
                exact_tokens=1_001,  # so that there is a sample of 1,000
                results=results,
                figure=False,
            )
            scored = score_run(asked)
            store(Path(results), scored.groups, scored.recipe, {}, scored.sentences)
        for split in ("validation", "test"):
            sweep(
                SweepConfig(
                    runs=(run,),
                    checkpoint="last",
                    split=split,
                    temperatures=("0.8:1.2:0.2",),
                    inverse_temperatures="0.75:1.25:11",
                    beams=(2,),
                    threads=1,
                    results=results,
                )
            )
    (tmp_path / "claims.yaml").write_text(SHIPPED.read_text(encoding="utf-8").replace(" 10000\n", " 1000\n"))
    claims = read_claims("claims.yaml")
    setting = dataclasses.replace(claims.settings["multi30k-de"], beam=2)
    claims = dataclasses.replace(claims, settings={**claims.settings, "multi30k-de": setting, "embedded": setting})
    verdicts = Report.read(claims, Path("results")).verdicts
    found = [one for one in verdicts if one.setting_name in ("multi30k-de", "embedded")]
    assert len(found) == 9 + 12
    for one in found:  # all is measured; one seed decides nothing
        assert one.word in ("unresolved", "regime not reached"), (one.claim.name, one.why)
        assert all(outcome.finding is not None and set(outcome.finding.seeds) == {1} for outcome in one.outcomes)
    results_of = read_results(setting, Path("results"))
    (smoothed,) = results_of.runs(0.1)
    assert smoothed.fitted_temperature[0] > 0
    assert {"bleu", "nll", "debiased_ece", "logit_gap_ideal", "inference_ece"} <= set(smoothed.scored[False])
    assert set(smoothed.decoded) == {0.8, 1.0, 1.2}
    # the sums of sentences at the fitted temperature are those of the figures, and are what the claim is tested with
    fitted = smoothed.scored[True]
    assert ece_from_sums(results_of.fitted_sums(smoothed, "bin_sums").sum(0)) == pytest.approx(fitted["ece"], abs=1e-4)
    assert ratio_of_sums(results_of.fitted_sums(smoothed, "nll").sum(0)) == pytest.approx(fitted["nll"], rel=1e-6)
    (hard_run,) = results_of.runs(0.0)
    as_temperature = next(one for one in found if one.claim.name == "nmt-calibration-as-temperature")
    assert as_temperature.outcomes[0].finding is not None
    assert f"best T by NLL, {hard_run.fitted_temperature[0]:.3g})" in as_temperature.outcomes[0].finding.ours
    # the sweep and the score measured one model
    assert smoothed.swept[1.0]["nll"] == pytest.approx(smoothed.scored[False]["nll"], rel=1e-5)
    capsys.readouterr()
