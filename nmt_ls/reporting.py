"""What `score` does: a run's figures on a split, their recipe, and the records and the figure that are kept of them."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from nmt_ls.decoding import figure_signature, search_config, trained_config
from nmt_ls.experiment.checkpoint import load_state
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.records import Record, Signature, append_records, command
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.metrics.null import calibration_test, null_distribution
from nmt_ls.metrics.plots import reliability_diagram, save_figure
from nmt_ls.metrics.temperature import check_temperature
from nmt_ls.runs import choose_device, find_run, run_corpus
from nmt_ls.scoring import BINS, Evaluation, evaluate, label_prior
from nmt_ls.search_changes import SearchChanges
from nmt_ls.translator import CheckpointName, Translator


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Which run to score, on what, and where the figures go.

    run: a run's directory; left out, the newest finished one under runs/.
    data: where the corpus of the run lies, if no longer where it was trained.
    checkpoint: which weights of the run.
    split: of the run's corpus.
    temperature: a number, or fitted (the one of lowest NLL on the validation split); left out, the run's own.
    results: a directory to whose records.jsonl every figure is appended, and a reliability diagram is written.
    precision: of the arithmetic; auto takes what is fast here.
    device: auto takes CUDA where there is a GPU.
    """

    run: str | None = None
    data: str | None = None
    checkpoint: CheckpointName = "best"
    split: str = "test"
    temperature: float | Literal["fitted"] | None = None
    results: str | None = None
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    search: SearchChanges = field(default_factory=SearchChanges)

    def __post_init__(self) -> None:
        if self.temperature is not None and self.temperature != "fitted":
            check_temperature(self.temperature)
        if self.search.samples:
            raise ValueError("search.samples: score translates by search; samples belong to decode")


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A run's figures on a split, with their recipe; provenance: what a record says beside it."""

    run: Path
    figures: dict[str, float]
    evaluation: Evaluation
    signature: Signature
    provenance: dict[str, Any]


def score(config: ScoreConfig) -> Scored:
    """Score a run on a split. Raises UserError for runs, corpora and settings that do not fit, before any work."""
    run = find_run(config.run)
    trained = trained_config(run)
    search = config.search.applied_to(trained.search)
    if search.samples:
        raise UserError(f"search.samples: {run} draws its translations; search for them, with --search.samples 0")
    temperature = search.temperature if config.temperature is None else config.temperature
    corpus = run_corpus(run, config.data)
    split = corpus.split(config.split)
    if temperature == "fitted":
        corpus.split("validation")
    if config.results is not None:
        prepare_results(Path(config.results))
    translator = Translator.load(run, config.checkpoint, choose_device(config.device), config.precision)
    translator.check_search(search)
    provenance = run_provenance(run, config.checkpoint)
    prior = label_prior(trained.loss, corpus, translator.device)
    search = search_config(temperature, search, run, translator, corpus)
    with tqdm(total=len(split), unit=" sentences", leave=False, disable=None) as bar:
        evaluation = evaluate(translator, split, search, loss=trained.loss, prior=prior, on_progress=bar.update)
    return Scored(
        run=run,
        figures={**evaluation.figures(), **calibration_figures(evaluation)},
        evaluation=evaluation,
        signature=figure_signature(run, trained, search, translator, config.checkpoint, split=config.split),
        provenance={**provenance, "temperature_is": "fitted" if temperature == "fitted" else "given"},
    )


def run_provenance(run: Path, checkpoint: CheckpointName) -> dict[str, Any]:
    """How a checkpoint was trained: its updates, be the run finished or not, and the machine and the command."""
    manifest = RunDirectory(run).read_manifest()
    return {
        "updates": load_state(RunDirectory(run).checkpoints / checkpoint)["step"],
        "training_command": manifest["command"],
        "training_commit": manifest["commit"],
        "training_precision": manifest["precision"]["kind"],
        "training_threads": manifest["threads"],
    }


def calibration_figures(evaluation: Evaluation) -> dict[str, float]:
    """The ECE's floor (95% of a calibrated model's ECEs lie below) and p-value, and the unbiased squared L2 error."""
    tokens = evaluation.teacher_forced.tokens
    test = calibration_test(tokens.confidences, tokens.correct, BINS)
    return {"ece_floor": test.floor, "ece_p_value": test.p_value, "squared_l2": test.unbiased_squared_l2}


def prepare_results(results: Path) -> None:
    """Have the directory. Raises UserError where there can be none, or nothing can be written there."""
    try:
        results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"results: {results} cannot be made ({error.strerror}); name another directory") from None
    if not os.access(results, os.W_OK):
        raise UserError(f"results: {results} cannot be written to; name another directory")


def store(results: Path, scored: Scored) -> None:
    """Append one record a figure, and write the reliability diagram with the band of a calibrated model."""
    signatures = scored.evaluation.translation.signatures
    recipe = {**scored.signature.to_dict(), **scored.provenance}
    records = [
        Record(
            name=figure,
            value=value,
            signature=recipe | ({"sacrebleu": signatures[figure]} if figure in signatures else {}),
            command=command(),
        )
        for figure, value in scored.figures.items()
    ]
    append_records(results / "records.jsonl", records)
    forced, figures = scored.evaluation.teacher_forced, scored.figures
    checkpoint, split, temperature = (recipe[key] for key in ("checkpoint", "split", "temperature"))
    figure = reliability_diagram(
        {f"{scored.run.name} ({checkpoint}), {split}": forced.calibration},
        null_distribution(forced.tokens.confidences, BINS).accuracy_band(),
        title=f"ECE {figures['ece']:.3f}, NLL {figures['nll']:.3f}, BLEU {figures['bleu']:.1f}",
    )
    shown = "fitted" if recipe["temperature_is"] == "fitted" else temperature
    stem = f"reliability-{scored.run.name}-{checkpoint}-{split}-T{shown}"
    for path in save_figure(figure, results / "figures" / stem):
        print(f"wrote {path}", file=sys.stderr)
    print(f"added {len(records)} records to {results / 'records.jsonl'}", file=sys.stderr)
