"""Tables 1 and 3 of translators, and estimators beside the exact values, of made-up studies whose rows are known."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_up_study import BOTH, Translator, write_study

from nmt_ls.claims import Setting
from nmt_ls.exact import ESTIMATORS, EXACT
from nmt_ls.report_tables import TRANSLATIONS
from nmt_ls.study_results import SettingResults, read_results
from nmt_ls.sweep_cells import SENTENCES_FOLDER
from nmt_ls.translation_tables import EXACT_OF, estimator_rows, translation_rows

SETTING = Setting(title="made up", results="fake", runs="fake-de-*", dropout=0.3, command="python -m made_up")


def results_of(root: Path, *translators: Translator, sentences: int = 300) -> SettingResults:
    write_study(root / "fake", translators, sentences=sentences, splits=BOTH)
    return read_results(SETTING, root)


def test_every_alpha_has_its_difference_from_hard_targets(tmp_path: Path) -> None:
    results = results_of(
        tmp_path,
        Translator(alpha=0.0, gap=lambda _: 0.2, scored={"bleu": 40.0}, between_seeds=0.001),
        Translator(alpha=0.1, precision=lambda _: 0.55, scored={"bleu": 45.0}, between_seeds=0.001),
        Translator(alpha=0.2, precision=lambda _: 0.40, nll=lambda _: 2.5, seeds=(1, 2), scored={"bleu": 30.0}),
    )
    hard, fitted, tenth, fifth = translation_rows(results)
    assert [row["temperature"] for row in (hard, tenth, fifth)] == ["1", "1", "1"]
    assert fitted["temperature"].startswith("fitted, ")
    assert [row["seeds"] for row in (hard, tenth, fifth)] == [3, 3, 2]
    assert tenth["bleu"] == pytest.approx(45.0, abs=1e-4)
    assert tenth["ece sd"] > 0
    assert not any("difference" in name for row in (hard, fitted) for name in row)
    assert tenth["bleu difference"].low > 0 > fifth["bleu difference"].high
    assert tenth["squared_l2 difference"].high < 0
    assert fifth["nll difference"].difference == pytest.approx(0.5)
    assert abs(tenth["nll difference"].difference) < 1e-9
    assert [row["over"] for row in (tenth, fifth)] == ["sentences and seeds"] * 2


def test_without_the_sentences_of_all_runs_differences_are_of_seeds(tmp_path: Path) -> None:
    def hard_and_smoothed() -> tuple[Translator, Translator]:
        scored = {"bleu": 40.0, "nll": 2.0, "squared_l2": 0.004}
        better = {"bleu": 45.0, "nll": 1.8, "squared_l2": 0.001}
        return Translator(alpha=0.0, scored=scored), Translator(alpha=0.1, scored=better)

    results_of(tmp_path, *hard_and_smoothed())
    kept = sorted((tmp_path / "fake" / SENTENCES_FOLDER).glob("*ls0.1-s1*"))
    assert kept
    for path in kept:
        path.unlink()
    results = read_results(SETTING, tmp_path)
    *_, row = translation_rows(results)
    assert row["over"] == "seeds"
    assert row["bleu difference"].seeds == (3, 3)
    assert row["bleu difference"].difference == pytest.approx(5.0, abs=1e-3)
    assert row["nll difference"].difference == pytest.approx(-0.2, abs=1e-3)
    assert row["squared_l2 difference"].fixed_sd == 0


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    results = results_of(
        tmp_path,
        Translator(alpha=0.0, seeds=(1,)),
        Translator(alpha=0.1, seeds=(1,), precision=lambda _: 0.6, own_luck=True),
    )
    *_, row = translation_rows(results)
    assert "ece sd" not in row
    (column,) = (column for column in TRANSLATIONS if column.key == "bleu difference")
    assert column.text(row["bleu difference"]).endswith(", no interval from one seed")


def test_each_estimator_has_an_exact_value_of_its_own() -> None:
    assert EXACT_OF.keys() == ESTIMATORS.keys()
    assert set(EXACT_OF.values()) == set(EXACT)


def test_errors_of_estimators(tmp_path: Path) -> None:
    scored = {
        "exact_ece": 0.05,
        "exact_sweep_ece": 0.06,
        "estimated_ece equal-width 1000": 0.08,
        "estimated_ece_sd equal-width 1000": 0.04,
        "estimated_ece sweep 1000": 0.05,
        "estimated_ece_sd sweep 1000": 0.0,
        "estimated_ece sweep 9000": 0.06,
    }
    width, sweep, whole = estimator_rows(results_of(tmp_path, Translator(alpha=0.1, scored=scored), sentences=20))
    assert (width["estimator"], width["sample_tokens"], width["seeds"]) == ("equal-width", 1000, 3)
    assert width["bias"] == pytest.approx(0.03, abs=1e-5)
    assert width["rmse"] == pytest.approx(0.05, abs=1e-5)  # 3, 4, 5
    assert sweep["exact"] == pytest.approx(0.06, abs=1e-5)  # not the one of equal widths
    assert sweep["bias"] == pytest.approx(-0.01, abs=1e-5)
    assert "rmse" not in whole  # of one sample there is no sd
