"""The sweep: what it measures, that it measures nothing twice, and what it says of it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_study import Translator as MadeUp
from made_up_study import write_study

from nmt_ls.corpus import Corpus
from nmt_ls.experiment.command_line import UserError, load_config
from nmt_ls.experiment.records import read_records
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.losses import LossConfig
from nmt_ls.measured_run import MeasuredRun
from nmt_ls.metrics.calibration import calibration_from_sums, ece_from_sums
from nmt_ls.metrics.translation import bleu_from_statistics, translation_scores
from nmt_ls.scoring import score_batches, split_batches
from nmt_ls.search import SearchConfig
from nmt_ls.sweep import main
from nmt_ls.sweep_cells import DECODED, Ledger, cell_key, find_runs, rounded_bits
from nmt_ls.sweep_table import Swept, baseline_of, best_row, difference_row, recipes_of, two_fold
from nmt_ls.sweeping import SweepConfig, sentence_sums, sweep
from nmt_ls.training import TrainConfig, train
from nmt_ls.transformer import Memory, Transformer
from nmt_ls.translator import Translator

GRID = "0.5:1.5:5"
TEMPERATURES = ("0.8", "1.0:1.2:0.2")


@pytest.fixture(scope="module")
def runs(small_run: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Hard and smoothed targets, two seeds of the latter."""
    folder, paths = tmp_path_factory.mktemp("swept"), [str(small_run.path)]
    config = load_config(TrainConfig, small_run.read_config())
    for name, changes in (("smooth-s2", {"seed": 2}), ("hard-s1", {"loss": LossConfig(alpha=0.0)})):
        paths.append(str(folder / name))
        cheaply: dict[str, Any] = {"out": paths[-1], "checkpoints": ("last",), "validation_sentences": 0}
        assert train(replace(config, **cheaply, **changes)).summary is not None  # type: ignore[arg-type]
    return paths


def settings(runs: Sequence[str], results: Path, **changes: Any) -> SweepConfig:
    given = {"runs": tuple(runs), "temperatures": TEMPERATURES, "inverse_temperatures": GRID, "beams": (2,)}
    ours = {"results": str(results), "threads": 1, "checkpoint": "last"}
    return SweepConfig(**{**given, **ours, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def swept(runs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a whole sweep."""
    results = tmp_path_factory.mktemp("results") / "small"
    sweep(settings(runs, results))
    return results


def figures(results: Path, run: str, **recipe: Any) -> dict[str, float]:
    """Of one cell, by name."""
    return {
        record.name: record.value
        for record in read_records(results / "records.jsonl")
        if {"run": Path(run).name, **recipe}.items() <= record.signature.items()
    }


def test_nll_and_ece_are_those_that_scoring_finds(runs: list[str], swept: Path, small_corpus: Corpus) -> None:
    translator = Translator.load(runs[2], "last")
    for inverse in (0.5, 1.0, 1.25):
        scored = score_batches(
            translator.model,
            split_batches(small_corpus.split("validation")),
            loss=LossConfig(),
            temperature=1 / inverse,
        )
        found = figures(swept, runs[2], temperature=round(1 / inverse, 9), bins=15)
        assert found["nll"] == pytest.approx(scored.likelihood.nll, rel=1e-5)
        assert found["ece"] == pytest.approx(scored.calibration.ece, abs=1e-5)
        assert found["squared_l2"] == pytest.approx(scored.calibration.unbiased_squared_l2, abs=1e-5)


def test_no_pad_is_counted(runs: list[str], small_corpus: Corpus) -> None:
    split = small_corpus.split("validation")
    nll_JS, tokens_S, sums_JSMB = sentence_sums(Translator.load(runs[0], "last"), split, [1.0, 0.5])
    lengths = [len(split.target_ids(row)) + 1 for row in range(len(split))]
    assert tokens_S.tolist() == lengths
    assert sums_JSMB[:, :, 0].sum(-1).tolist() == [lengths, lengths]  # each token in one bin, at each temperature
    assert nll_JS.shape == (2, len(split))


def test_translations_and_their_scores(runs: list[str], swept: Path, small_corpus: Corpus) -> None:
    split = small_corpus.split("validation")
    search = SearchConfig(beam=2, temperature=1.2)
    sources = [split.source_text(row) for row in range(len(split))]
    texts = [best[0].text for best in Translator.load(runs[2], "last").translate(sources, search)]
    scores = translation_scores(texts, [split.references(row) for row in range(len(split))])
    found = figures(swept, runs[2], temperature=1.2, beam=2)
    assert found["bleu"] == pytest.approx(scores.bleu)
    assert found["length_ratio"] == pytest.approx(scores.length_ratio)
    assert found["brevity_penalty"] == pytest.approx(scores.brevity_penalty)
    table = pd.read_parquet(swept / "sentences.parquet")
    rows = table[(table.run == "hard-s1") & (table.kind == "decoded") & (table.temperature == 1.2)]
    assert rows.sort_values("sentence").hypothesis.tolist() == texts


def test_sentences_add_up_to_the_figures(runs: list[str], swept: Path, small_corpus: Corpus) -> None:
    table = pd.read_parquet(swept / "sentences.parquet")
    rows = len(small_corpus.split("validation"))
    assert len(table) == len(runs) * rows * (5 + 3)
    for run in runs:
        for temperature in (2.0, 1.0):
            cell = table[(table.run == Path(run).name) & (table.kind == "teacher-forced")]
            cell = cell[np.isclose(cell.temperature, temperature)]
            assert sorted(cell.sentence) == list(range(rows))
            found = figures(swept, run, temperature=temperature, bins=15)
            assert cell.nll.sum() / cell.tokens.sum() == pytest.approx(found["nll"])
            sums = np.stack(cell.bin_sums.to_list()).astype(np.float64).sum(0).reshape(6, 15)
            # of 12 bits each
            assert calibration_from_sums(sums).ece == pytest.approx(found["ece"], abs=1e-4)
        cell = table[(table.run == Path(run).name) & (table.kind == "decoded") & (table.temperature == 0.8)]
        statistics = np.stack(cell.bleu_statistics.to_list()).sum(0)
        found = figures(swept, run, temperature=0.8, beam=2)
        assert float(bleu_from_statistics(statistics)) == pytest.approx(found["bleu"])
        assert statistics[0] / statistics[1] == pytest.approx(found["length_ratio"])


def test_records_carry_the_recipe(runs: list[str], swept: Path) -> None:
    records = read_records(swept / "records.jsonl")
    assert len(records) == len(runs) * (5 * 3 + 3 * 4)
    whole = {"alpha", "spread", "prior", "temperature", "split", "checkpoint", "seed", "precision", "commit", "corpus"}
    whole |= {"run", "weights", "updates", "training_commit", "training_precision", "versions", "dropout"}
    assert all(whole <= set(record.signature) for record in records)
    assert {record.signature["dropout"] for record in records} == {0.1}  # never a dropout left unsaid
    by_name = {record.name: record for record in records}
    assert {"beam", "length_penalty", "sacrebleu"} <= set(by_name["bleu"].signature)
    assert "beam" not in by_name["ece"].signature
    assert by_name["ece"].signature["bins"] == 15


class Counted:
    """What a sweep asks of a translator: temperatures and beam of each call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, killed_at_call: int = 0) -> None:
        self.translated: list[tuple[list[float], int]] = []
        translate_at = Translator.translate_at

        def counting(
            translator: Translator,
            temperatures: Sequence[float],
            lines: Sequence[str],
            search: SearchConfig,
            **rest: Any,
        ) -> Any:
            self.translated.append((list(temperatures), search.beam))
            if len(self.translated) == killed_at_call:
                raise KeyboardInterrupt
            return translate_at(translator, temperatures, lines, search, **rest)

        monkeypatch.setattr(Translator, "translate_at", counting)


def test_what_is_there_is_not_measured_again(
    runs: list[str], swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = shutil.copytree(swept, tmp_path / "results")
    before = (results / "records.jsonl").read_bytes()
    counted = Counted(monkeypatch)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("loaded a run though nothing was left to do")

    with monkeypatch.context() as patch:
        patch.setattr(Translator, "load", refuse)
        sweep(settings(runs, results))
    assert (results / "records.jsonl").read_bytes() == before
    assert "12 of 12 cells were measured before; 0 to go" in capsys.readouterr().err
    # one temperature more, of either kind
    sweep(settings(runs[:1], results, temperatures=("0.8", "1.4"), inverse_temperatures="0.5:2:7"))
    assert counted.translated == [([1.4], 2)]
    added = read_records(results / "records.jsonl")[len(before.splitlines()) :]
    assert sorted({record.signature["temperature"] for record in added}) == [0.5, round(1 / 1.75, 9), 1.4]


def test_a_kill_costs_the_temperatures_that_were_in_work(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nmt_ls.sweeping.TOGETHER", 2)
    config = settings(runs[:1], tmp_path / "results", beams=(2, 3))
    counted = Counted(monkeypatch, killed_at_call=2)
    with pytest.raises(KeyboardInterrupt):
        sweep(config)
    assert len(read_records(tmp_path / "results" / "records.jsonl")) == 5 * 3 + 2 * 4
    sweep(config)
    # beams apart, at most two temperatures together, what was killed anew
    assert counted.translated == [
        ([0.8, 1.0], 2),
        ([1.2], 2),
        ([1.2], 2),
        ([0.8, 1.0], 3),
        ([1.2], 3),
    ]
    assert len(read_records(tmp_path / "results" / "records.jsonl")) == 5 * 3 + 2 * 3 * 4


def decoded_figures(results: Path) -> dict[str, float]:
    """By cell and name."""
    records = read_records(results / "records.jsonl")
    return {cell_key(one.signature) + one.name: one.value for one in records if one.name in DECODED}


def test_a_batch_is_encoded_once_whatever_is_searched_in_it(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[int]()
    encode = Transformer.encode

    def counting(model: Transformer, source_BS: torch.Tensor) -> Memory:
        calls.append(len(source_BS))
        return encode(model, source_BS)

    monkeypatch.setattr(Transformer, "encode", counting)
    monkeypatch.setattr("nmt_ls.sweeping.TOGETHER", 2)
    # batches of ten sentences, whatever the beam
    monkeypatch.setattr("nmt_ls.translator.MAX_LOGITS", 3 * 2 * Translator.load(runs[0]).target_vocabulary.size * 10)
    searched: dict[str, Any] = {"temperatures": ("0.8:1.4:0.2",), "length_penalties": (0.6, 1.0)}
    found = list[dict[str, float]]()
    for name, room, encoded in (("kept", 1 << 20, 1), ("anew", 0, 4)):
        monkeypatch.setattr("nmt_ls.prefix_decoder.MOST_KEPT", room)
        config = settings(runs[:1], tmp_path / name, split="test", **searched)
        sweep(replace(config, temperatures=("none",)))  # what is teacher-forced encodes too
        calls.clear()
        sweep(config)
        assert calls == [10, 10] * encoded  # two groups of temperatures by two length penalties
        found.append(decoded_figures(tmp_path / name))
    assert len(found[0]) == 4 * 2 * len(DECODED)
    assert found[0] == found[1]


def test_a_search_that_cannot_be_shared_is_made_one_temperature_at_a_time(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    config = settings(runs[:1], tmp_path / "results", search=SearchConfig(alternatives=2))
    sweep(config)
    assert counted.translated == [([0.8], 2), ([1.0], 2), ([1.2], 2)]


def test_a_kill_between_sentences_and_records(runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(runs[:1], tmp_path / "results", temperatures=("none",))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("nmt_ls.sweep_cells.append_records", killed)
        with pytest.raises(KeyboardInterrupt):
            sweep(config)
    # other temperatures, so that the new part of the sentences stands beside the old one
    wider = replace(config, inverse_temperatures="0.5:2:7")
    found, ledger = sweep(wider)
    (recipe,) = recipes_of(found, Swept(ledger=ledger, split="validation", inverses=[0.5, 1.0], searches=[]))
    whole = pd.read_parquet(tmp_path / "results" / "sentences.parquet")
    assert whole.duplicated(["temperature", "sentence"]).any()
    sums = recipe.bin_sums.sum((0, 1))
    assert [float(ece_from_sums(total)) for total in sums] == pytest.approx(
        [figures(tmp_path / "results", runs[0], temperature=t)["ece"] for t in (2.0, 1.0)], abs=1e-4
    )


def test_results_that_cannot_be_written_are_refused_before_any_work(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("nmt_ls.sweeping.Sweep.teacher_forced", lambda *_: pytest.fail("measured before it looked"))
    with pytest.raises(UserError, match=r"^results: .*cannot be made"):
        sweep(settings(runs[:1], tmp_path / "file" / "results"))


def test_the_best_checkpoint_is_measured_unless_another_is_named() -> None:
    assert SweepConfig().checkpoint == "best"


def test_a_run_that_was_trained_anew_is_measured_anew(runs: list[str], swept: Path) -> None:
    run = MeasuredRun.open(Path(runs[0]), "last")
    ledger = Ledger(swept)
    cell = {**run.identity("validation"), "temperature": 2.0}
    assert ledger.holds(cell, ["nll", "ece"])
    assert not ledger.holds({**cell, "weights": "0" * 16}, ["nll"])
    assert not ledger.holds({**cell, "split": "test"}, ["nll"])
    assert not ledger.holds(cell, ["nll", "bleu"])


def test_the_table_names_the_split_on_which_temperatures_were_chosen(
    runs: list[str], swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = shutil.copytree(swept, tmp_path / "results")
    main(settings(runs, results))
    out = capsys.readouterr().out
    assert "best temperatures are chosen on the validation split and reported on it, which flatters them" in out
    assert "two-fold" in out
    assert "less the hard-target baseline, at temperature 1" in out
    table = pd.read_csv(results / "sweep-validation-last.csv")
    assert table.recipe.tolist() == ["α=0, dropout 0.1", "α=0.1, dropout 0.1"]
    assert table.seeds.tolist() == [1, 2]
    assert (table["T chosen on"] == table["split"]).all()
    assert sorted(path.name for path in (results / "figures").iterdir()) == [
        "sweep-validation-last.png",
        "sweep-validation-last.svg",
    ]


def recipe_figures(results: Path, runs: Sequence[str], name: str, **recipe: Any) -> float:
    return float(np.mean([figures(results, run, **recipe)[name] for run in runs]))


def test_the_best_temperatures_and_the_differences(runs: list[str], swept: Path) -> None:
    config = settings(runs, swept)
    found, ledger = sweep(config)
    searches = list(config.searches())
    recipes = recipes_of(
        found, Swept(ledger=ledger, split="validation", inverses=config.whole_inverse_grid, searches=searches)
    )
    hard, smooth = recipes
    assert (hard.label, smooth.label) == ("α=0, dropout 0.1", "α=0.1, dropout 0.1")
    row, both = best_row(smooth), [runs[0], runs[1]]
    nll = {
        round(1 / b, 9): recipe_figures(swept, both, "nll", temperature=round(1 / b, 9), bins=15)
        for b in config.whole_inverse_grid
    }
    assert row["T by NLL"] == min(nll, key=lambda t: nll[t])
    assert row["NLL, best T"] == pytest.approx(min(nll.values()))
    assert row["NLL, T=1"] == pytest.approx(nll[1.0])
    assert row["ECE, T=1"] == pytest.approx(recipe_figures(swept, both, "ece", temperature=1.0, bins=15))
    assert row["BLEU, T=1"] == pytest.approx(recipe_figures(swept, both, "bleu", temperature=1.0, beam=2))
    assert row["BLEU, best T"] >= row["BLEU, T=1"]
    assert row["ECE, T by ECE"] <= min(row["ECE, T=1"], row["ECE, T by NLL"])
    assert baseline_of(smooth, recipes) is hard
    assert baseline_of(hard, recipes) is None
    difference = difference_row(smooth, hard)
    assert difference["BLEU"] == pytest.approx(
        row["BLEU, T=1"] - figures(swept, runs[2], temperature=1.0, beam=2)["bleu"]
    )
    expected = row_l2(swept, both) - row_l2(swept, runs[2:])
    assert difference["squared L2"] == pytest.approx(expected, abs=1e-5)
    assert (difference["resolved, BLEU"], difference["resolved, L2"]) == ("one seed", "one seed")  # of hard targets


def made_up_difference(folder: Path, *made_up: MadeUp) -> dict[str, Any]:
    """The row of differences of two recipes whose truth is known, α = 0 and another."""
    write_study(folder, made_up, splits=("validation",))
    runs = [
        MeasuredRun(
            path=Path(f"fake-de-ls{one.alpha}-s{seed}"),
            config=TrainConfig(loss=LossConfig(alpha=one.alpha), seed=seed),
            manifest={},
            updates=1000,
            checkpoint="last",
            weights=f"{seed}{one.alpha}".ljust(16, "f"),
        )
        for one in made_up
        for seed in one.seeds
    ]
    searches = [SearchConfig(temperature=1.0)]
    swept = Swept(ledger=Ledger(folder), split="validation", inverses=[1.0], searches=searches)
    first, second = recipes_of(runs, swept)
    return difference_row(second, first)


def test_a_difference_is_resolved_where_sentences_and_seeds_agree_on_it(tmp_path: Path) -> None:
    made_up = [
        MadeUp(alpha=alpha, seeds=(seed,), gap=lambda _, gap=gap: gap, precision=lambda _, p=p: p)  # type: ignore[misc]
        for alpha, seed, gap, p in (
            *((0.0, 1, 0.20, 0.40), (0.0, 2, 0.21, 0.41), (0.0, 3, 0.19, 0.42)),
            *((0.1, 1, 0.00, 0.60), (0.1, 2, 0.01, 0.61), (0.1, 3, 0.02, 0.62)),
        )
    ]
    row = made_up_difference(tmp_path, *made_up)
    assert row["BLEU"] > 10 > row["± BLEU"]
    assert row["squared L2"] < -0.02
    assert (row["resolved, BLEU"], row["resolved, L2"]) == ("yes", "yes")


def test_a_difference_that_seeds_hide_is_not_resolved(tmp_path: Path) -> None:
    """BLEU differs by some 2, but by 40 between seeds; calibration does not differ at all."""
    hard = MadeUp(alpha=0.0, precision=lambda _: 0.50, between_seeds=0.2)
    smooth = MadeUp(alpha=0.1, precision=lambda _: 0.52, between_seeds=0.2)
    row = made_up_difference(tmp_path, hard, smooth)
    assert row["± BLEU"] > row["BLEU"] > 0.5
    assert (row["resolved, BLEU"], row["resolved, L2"]) == ("no", "no")


def test_one_seed_resolves_nothing(tmp_path: Path) -> None:
    hard = MadeUp(alpha=0.0, gap=lambda _: 0.2, precision=lambda _: 0.4)
    smooth = MadeUp(alpha=0.1, gap=lambda _: 0.0, precision=lambda _: 0.6, seeds=(1,))
    row = made_up_difference(tmp_path, hard, smooth)
    assert row["p, BLEU"] < 0.001
    assert (row["resolved, BLEU"], row["resolved, L2"]) == ("one seed", "one seed")


def test_dropout_zero_is_said_wherever_the_sweep_shows_a_figure(
    small_run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(TrainConfig, small_run.read_config())
    without = replace(
        config, out=str(tmp_path / "none"), model=replace(config.model, dropout=0.0), checkpoints=("last",)
    )
    assert train(without).summary is not None
    results = tmp_path / "results"
    main(settings([without.out], results, temperatures=("1",)))
    out = capsys.readouterr().out
    assert "\nα=0.1, dropout 0 " in out
    (recipe,) = [line for line in out.splitlines() if line.startswith("recipe: ")]
    corpus = small_run.read_manifest()["corpus_checksum"]
    said = {"alpha:0.1", "dropout:0.0", "spread:all", "prior:uniform", "bins:15", "beam:2", "split:validation"}
    said |= {"checkpoint:last", "seed:1", "precision:fp32/highest", f"corpus:{corpus}", "length_penalty:average:1"}
    assert said <= set(recipe.removeprefix("recipe: ").split("|"))
    assert {"commit", "torch", "weights"} <= {part.partition(":")[0] for part in recipe.split("|")}
    assert "\nBLEU: nrefs:1|" in out
    (row,) = pd.read_csv(results / "sweep-validation-last.csv").to_dict("records")
    stored = {"dropout": 0.0, "spread": "all", "prior": "uniform", "bins": 15, "precision": "fp32/highest", "seed": 1}
    stored |= {"split": "validation", "checkpoint": "last", "corpus": corpus, "recipe": "α=0.1, dropout 0"}
    assert stored.items() <= row.items()
    assert {"commit", "torch", "command", "BLEU signature"} <= set(row)
    figure = (results / "figures" / "sweep-validation-last.svg").read_text(encoding="utf-8")
    assert "α=0.1, dropout 0" in figure
    assert f"corpus {corpus[:10]}" in figure


def row_l2(results: Path, runs: Sequence[str]) -> float:
    return recipe_figures(results, runs, "squared_l2", temperature=1.0, bins=15)


def test_rounded_bits() -> None:
    values = np.array([0.0, 1.0, 3.0, 8191.0, 1 / 3, 0.999999])
    rounded = rounded_bits(values)
    assert rounded[:4].tolist() == values[:4].tolist()
    assert np.abs(rounded / np.where(values, values, 1) - (values > 0)).max() <= 2.0**-13
    assert rounded[5] == 1.0  # to the nearest, not cut off


def test_two_fold_uses_each_half_at_the_temperature_of_the_other() -> None:
    # one seed, three temperatures; the halves disagree: the first likes index 0, the second index 2
    criterion = np.array([[[1.0, 2.0, 3.0]], [[3.0, 2.0, 1.0]]])
    sums = np.array([[[10.0, 20.0, 30.0]], [[100.0, 200.0, 300.0]]])

    def lowest(values: np.ndarray[Any, Any]) -> int:
        return int(values.mean(0).argmin())

    assert two_fold(criterion, sums, lowest, lambda total: total) == 30.0 + 100.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beams": (1,), "temperatures": ("0.8:1.2:0.1",)}, "greedy search, whose translations no temperature changes"),
        ({"beams": (5, 1)}, "greedy"),
        ({"temperatures": ("a:b",)}, "neither a number nor a grid"),
        ({"temperatures": ("1:0.5:0.1",)}, "needs a step above 0"),
        ({"temperatures": ("-1",)}, "temperature must be a finite number above 0"),
        ({"inverse_temperatures": "0.5:1.5"}, "must be first:last:count"),
        ({"inverse_temperatures": "0.5:1.5:1"}, "at least 2 points"),
        ({"beams": (4, 4)}, "each only once"),
        ({"search": SearchConfig(temperature=1.1)}, "give it as --temperatures"),
        ({"search": SearchConfig(samples=2)}, "samples"),
        ({"beams": (5, 0)}, "beams: beam must be at least 1, got 0"),
        ({"beams": (0,), "temperatures": ("none",)}, "beams: beam must be at least 1, got 0"),
        ({"length_penalties": (float("nan"),)}, "length_penalties: length_penalty must be a finite number, got nan"),
    ],
)
def test_bad_settings(changes: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SweepConfig(**changes)


def test_grids_include_both_ends() -> None:
    assert SweepConfig(temperatures=("0.7:1.6:0.05",)).decoded_temperatures == pytest.approx(np.arange(14, 33) / 20)
    assert SweepConfig(temperatures=("1", "0.8,1.2")).decoded_temperatures == [0.8, 1.0, 1.2]
    assert SweepConfig(temperatures=("none",)).decoded_temperatures == []
    assert SweepConfig(temperatures=("1.0",), beams=(1,)).decoded_temperatures == [1.0]
    default = SweepConfig()
    assert 1.0 in default.inverse_grid  # even, so that the grid costs two exponentials a logit
    assert 1.0 in SweepConfig(inverse_temperatures="0.6:1.5:4").whole_inverse_grid
    config = SweepConfig(temperatures=("0.9", "1"), beams=(4, 8), length_penalties=(0.6, 1.0))
    assert [(s.beam, s.length_penalty, s.temperature) for s in config.searches()][:3] == [
        (4, 0.6, 0.9),
        (4, 0.6, 1.0),
        (4, 1.0, 0.9),
    ]
    assert len(list(config.searches())) == 8


def test_finding_runs(runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(runs[1]).parent)
    assert [run.path.name for run in find_runs(["*-s?"], "last")] == ["hard-s1", "smooth-s2"]
    assert [run.path.name for run in find_runs([f"{Path.cwd()}/*-s?"], "last")] == ["hard-s1", "smooth-s2"]
    with pytest.raises(UserError, match="no finished run matches nothing-"):
        find_runs(["nothing-*"], "last")
    with pytest.raises(UserError, match=r"^runs: nothing is not a run"):
        find_runs(["nothing"], "last")
    with pytest.raises(UserError, match=r"^runs: there is no finished run"):
        find_runs([], "last")
    copied = shutil.copytree(runs[1], tmp_path / "smooth-s2")
    with pytest.raises(UserError, match="two of them are called smooth-s2"):
        find_runs(["smooth-s2", str(copied)], "last")
    shutil.rmtree(copied / "checkpoints" / "last")
    with pytest.raises(UserError, match="no such checkpoint"):
        find_runs([str(copied)], "last")


def test_another_precision_is_a_search_of_its_own(
    runs: list[str], swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """NLL and calibration are in fp32 whatever the search is in, and so are there already."""
    results = shutil.copytree(swept, tmp_path / "results")
    before = figures(results, runs[0], beam=2, temperature=1.0)
    sweep(settings(runs[:1], results, precision="bf16", temperatures=("1",)))
    assert "1 to go" in capsys.readouterr().err
    of_bf16 = [record for record in read_records(results / "records.jsonl") if "bf16" in record.signature["precision"]]
    assert {record.name for record in of_bf16} == {"bleu", "chrf", "length_ratio", "brevity_penalty"}
    assert all(record.signature["search"] == {"precision": "bf16"} for record in of_bf16)
    for precision in ("fp32", "bf16"):
        sweep(settings(runs[:1], results, precision=precision, temperatures=("1",)))
        assert "0 to go" in capsys.readouterr().err
    assert figures(swept, runs[0], beam=2, temperature=1.0) == before
    main(settings(runs[:1], results, precision="bf16", temperatures=("1",)))  # the table is of its own translations
    assert "bf16" in capsys.readouterr().out


def test_two_runs_of_one_seed_are_no_two_seeds(small_run: RunDirectory, tmp_path: Path) -> None:
    shutil.copytree(small_run.path, tmp_path / "a")
    shutil.copytree(small_run.path, tmp_path / "b")
    found = find_runs([str(tmp_path / "a"), str(tmp_path / "b")], "best")
    with pytest.raises(UserError, match="one recipe and one seed"):
        recipes_of(found, Swept(ledger=Ledger(tmp_path), split="validation", inverses=[1.0], searches=[]))
