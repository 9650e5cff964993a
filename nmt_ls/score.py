"""python -m nmt_ls.score: what a run is worth on a split: likelihood, calibration and translation quality."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from nmt_ls.decoding import find_run, run_corpus, search_config
from nmt_ls.experiment.command_line import load_config, run_command
from nmt_ls.experiment.records import Record, append_records, command
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.experiment.tables import format_table
from nmt_ls.losses import Prior
from nmt_ls.metrics.null import calibration_test, null_distribution
from nmt_ls.metrics.plots import reliability_diagram, save_figure
from nmt_ls.metrics.temperature import check_temperature
from nmt_ls.scoring import BINS, Evaluation, evaluate
from nmt_ls.search import SearchConfig
from nmt_ls.training import TrainConfig, choose_device, run_signature
from nmt_ls.translator import CheckpointName, Translator

SHORT_NAMES = {"beam": "search.beam", "length_penalty": "search.length_penalty"}


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Which run to score, on what, and where the figures go.

    run: a run's directory; left out, the newest finished one under runs/.
    split: of the run's corpus. temperature: a number, or fitted: the one of lowest NLL on the validation split.
    results: a directory to whose records.jsonl every figure is appended, and a reliability diagram is written.
    """

    run: str | None = None
    checkpoint: CheckpointName = "best"
    split: str = "test"
    temperature: float | Literal["fitted"] = 1.0
    results: str | None = None
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        if self.temperature != "fitted":
            check_temperature(self.temperature)
        if self.search.temperature != 1.0:
            raise ValueError("search.temperature: give the temperature as --temperature")
        if self.search.samples:
            raise ValueError("search.samples: score translates by search; samples belong to decode")


def main(config: ScoreConfig) -> None:
    run = find_run(config.run)
    corpus = run_corpus(run)
    trained = load_config(TrainConfig, RunDirectory(run).read_config(), where=f"{run}/config.yaml")
    translator = Translator.load(run, config.checkpoint, choose_device(config.device), config.precision)
    search = search_config(config.temperature, config.search, run, translator)
    prior: Prior = corpus.unigram_prior().to(translator.device) if trained.loss.prior == "unigram" else "uniform"
    split = corpus.split(config.split)
    with tqdm(total=len(split), unit=" sentences", leave=False, disable=None) as bar:
        evaluation = evaluate(translator, split, search, loss=trained.loss, prior=prior, on_progress=bar.update)
    figures = {**evaluation.figures(), **calibration_figures(evaluation)}
    print(f"{run}, {config.checkpoint} checkpoint, {config.split} split, temperature {search.temperature:.4g}\n")
    print(format_table([{"figure": name, "value": value} for name, value in figures.items()], ["figure", "value"]))
    for name, text in evaluation.translation.signatures.items():
        print(f"{name}: {text}")
    if config.results is not None:
        manifest = RunDirectory(run).read_manifest()
        signature = run_signature(replace(trained, search=search), corpus, translator.precision, split=config.split)
        recipe = {
            **signature.to_dict(),
            "checkpoint": config.checkpoint,
            "temperature_is": "fitted" if config.temperature == "fitted" else "given",
            "updates": RunDirectory(run).read_summary().get("updates"),
            "training_command": manifest["command"],
            "training_commit": manifest["commit"],
            "training_precision": manifest["precision"]["kind"],
            "training_threads": manifest["threads"],
        }
        store(Path(config.results), run.name, config, evaluation, figures, recipe)


def calibration_figures(evaluation: Evaluation) -> dict[str, float]:
    """The ECE's floor (95% of a calibrated model's ECEs lie below) and p-value, and the unbiased squared L2 error."""
    tokens = evaluation.teacher_forced.tokens
    test = calibration_test(tokens.confidences, tokens.correct, BINS)
    return {"ece_floor": test.floor, "ece_p_value": test.p_value, "squared_l2": test.unbiased_squared_l2}


def store(
    results: Path,
    name: str,
    config: ScoreConfig,
    evaluation: Evaluation,
    figures: dict[str, float],
    recipe: dict[str, object],
) -> None:
    """Append one record a figure, and write the reliability diagram with the band of a calibrated model."""
    signatures = evaluation.translation.signatures
    records = [
        Record(
            name=figure,
            value=value,
            signature=recipe | ({"sacrebleu": signatures[figure]} if figure in signatures else {}),
            command=command(),
        )
        for figure, value in figures.items()
    ]
    results.mkdir(parents=True, exist_ok=True)
    append_records(results / "records.jsonl", records)
    null = null_distribution(evaluation.teacher_forced.tokens.confidences, BINS)
    figure = reliability_diagram(
        {f"{name} ({config.checkpoint}), {config.split}": evaluation.teacher_forced.calibration},
        null.accuracy_band(),
        title=f"ECE {figures['ece']:.3f}, NLL {figures['nll']:.3f}, BLEU {figures['bleu']:.1f}",
    )
    stem = f"reliability-{name}-{config.checkpoint}-{config.split}-T{config.temperature}"
    for path in save_figure(figure, results / "figures" / stem):
        print(f"wrote {path}", file=sys.stderr)
    print(f"added {len(records)} records to {results / 'records.jsonl'}", file=sys.stderr)


if __name__ == "__main__":
    run_command(
        main,
        ScoreConfig,
        program="python -m nmt_ls.score",
        description="Likelihood, calibration and translation quality of a run on a split.",
        short_names=SHORT_NAMES,
    )
