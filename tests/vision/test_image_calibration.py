"""Table 3 and Figure 2 from what evaluation leaves: three systems, and α chosen where it may be."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from nmt_ls.claims import Setting
from nmt_ls.experiment.records import read_records
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.image_calibration import best_alpha, reliabilities, scaling_rows, systems
from nmt_ls.report_figures import setting_figures
from nmt_ls.report_tables import setting_tables
from nmt_ls.study_results import SettingResults
from vision_ls.evaluate import main as evaluate_command
from vision_ls.evaluation import EvaluateConfig

SETTING = Setting(title="made", results="study", runs="*", dropout=0.0, command="python -m nmt_ls.study")


@pytest.fixture(scope="module")
def measured(telling_classifier: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> SettingResults:
    """A run's records and examples, as if it were hard targets; and, made of them, two α, of which 0.2 has the worse
    NLL on validation and the better one on test."""
    folder = tmp_path_factory.mktemp("results") / "study"
    for split in ("validation", "test"):
        evaluate_command(
            EvaluateConfig(
                run=str(telling_classifier.path), checkpoint="last", split=split, results=str(folder), figure=False
            )  # type: ignore[arg-type]
        )
    records = []
    for record in read_records(folder / "records.jsonl"):
        for alpha, better_on in ((0.0, ""), (0.1, "validation"), (0.2, "test")):
            value = record.value - (record.name == "nll" and record.signature["split"] == better_on)
            recipe = {**record.signature, "alpha": alpha, "run": f"{record.signature['run']}{alpha or ''}"}
            records.append(dataclasses.replace(record, value=value, signature=recipe))
    return SettingResults(SETTING, folder, records)


def test_alpha_is_chosen_on_validation(measured: SettingResults) -> None:
    assert best_alpha(measured) == 0.1
    found = [(system.alpha, system.fitted) for system in systems(measured)]
    assert found == [(0.0, False), (0.0, True), (0.1, False)]
    (hard,) = measured.runs(0.0)
    rows = list(scaling_rows(measured))
    assert [row["ece"] for row in rows[:2]] == [hard.scored[False]["ece"], hard.scored[True]["ece"]]
    assert rows[1]["temperature"] == f"fitted, {hard.fitted_temperature[0]:.3f}"
    assert "ece sd" not in rows[0]  # of one seed


def test_curves_are_of_the_examples(measured: SettingResults) -> None:
    (hard,) = measured.runs(0.0)
    found, band = reliabilities(measured)
    assert [round(each.ece, 9) for each in found.values()] == [
        round(hard.scored[fitted]["ece"], 9) for fitted in (False, True)
    ]  # those of the made-up α have no examples
    assert band is not None
    low, high = band
    full = found["α = 0"].bin_counts > 0
    assert (low[full] <= high[full]).all()
    assert (low[full] - 0.05 <= found["α = 0"].bin_confidence[full]).all()  # around the confidences
    assert (found["α = 0"].bin_confidence[full] <= high[full] + 0.05).all()
    table = pq.read_table(measured.folder / "examples.parquet", filters=[("split", "=", "test")])
    given_N = np.array([kind == "given" for kind in table["temperature_is"].to_pylist()])
    assert len(table) == 2 * given_N.sum()
    (caption,) = [caption for name, caption, _ in setting_figures(measured) if name == "reliability"]
    assert "prefix" not in caption
    assert "Figure 2" in caption
    assert "lowest NLL" in caption  # α was chosen among two
    table3 = next(table for table in setting_tables(measured) if table.title.startswith("As Table 3 of the paper"))
    assert "α" in table3.title
    assert [row["system"] for row in table3.rows] == [
        "hard targets", "hard targets, temperature fitted", "label smoothing"
    ]  # fmt: skip


def test_nothing_of_images_that_were_trained_on(measured: SettingResults, tmp_path: Path) -> None:
    setting = dataclasses.replace(SETTING, split="train")
    assert systems(SettingResults(setting, measured.folder, [])) == []
    assert systems(SettingResults(SETTING, tmp_path, [])) == []
