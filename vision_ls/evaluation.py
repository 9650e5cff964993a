"""What `evaluate` does: a classifier's figures on a split, with and without a fitted temperature, and what is kept.

Figures become records, one a figure; what belongs to each held-out image goes into the folder examples.parquet, a file
a cell (run, checkpoint, split), all of one schema, for paired tests; diagrams into figures/.

Shape suffixes: N images, K classes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from torch import Tensor

from nmt_ls.experiment.checkpoint import CheckpointName
from nmt_ls.experiment.distillation import OF_TEACHER, of_teacher
from nmt_ls.experiment.records import (
    FITTED_ON,
    Record,
    prepare_results,
    records_of,
    store_records,
    temperature_recipe,
    warn_of_flattery,
)
from nmt_ls.experiment.run_directory import RunDirectory, atomic_write
from nmt_ls.metrics.logit_gaps import LogitGapAccumulator, LogitGaps
from nmt_ls.metrics.null import null_distribution
from nmt_ls.metrics.plots import logit_gap_figure, reliability_diagram, risk_coverage_figure
from nmt_ls.metrics.temperature import fit_temperature
from vision_ls.data import ImageData, in_brackets
from vision_ls.runs import Classifier, find_run, find_runs, picture_stem, regime_missed
from vision_ls.scoring import BINS, ImageScores, exact_figures, score_logits
from vision_ls.train_config import STEPS_TO_REACH, label_prior

MOST_TOGETHER = 4
"""Runs in one diagram of logit gaps."""
EXAMPLES = pa.schema(
    [
        ("run", pa.string()),
        ("checkpoint", pa.string()),
        ("weights", pa.string()),  # of their SHA-256
        ("split", pa.string()),
        ("alpha", pa.float64()),
        ("seed", pa.int64()),
        ("temperature", pa.float64()),
        ("temperature_is", pa.string()),  # given, or fitted by NLL on the validation split
        ("image", pa.int32()),  # row of the split
        ("label", pa.int32()),
        ("predicted", pa.int32()),
        ("confidence", pa.float64()),
        ("correct", pa.bool_()),
        ("nll", pa.float64()),  # nats
    ]
)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which run to evaluate, on what, and where the figures go.

    run: a run's directory; left out, the newest finished one of a classifier under runs/.
    runs: or several, one after the other; mean and standard deviation over them come at the end, and their logit gaps
        go into one diagram.
    data: where the images of the run lie, if no longer where they were when it was trained.
    checkpoint: which weights of the run; claims are about the last.
    split: train, validation or test.
    results: a directory to whose records.jsonl every figure is appended that is not there yet.
    figure: whether to draw diagrams there too.
    precision: of the arithmetic; auto takes what is fast here.
    device: auto takes CUDA where there is a GPU.
    """

    run: str | None = None
    runs: tuple[str, ...] = ()
    data: str | None = None
    checkpoint: CheckpointName = "best"
    split: Literal["train", "validation", "test"] = "test"
    results: str | None = None
    figure: bool = True
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if self.run is not None and self.runs:
            raise ValueError("run, runs: name one run with the first or several with the second, not both")
        if len(set(self.runs)) < len(self.runs):
            raise ValueError("runs: name each only once")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Figures at one temperature, with their recipe and what they were made from."""

    values: dict[str, float]
    recipe: dict[str, Any]
    scores: ImageScores

    def records(self) -> list[Record]:
        """One a figure that is finite."""
        return records_of(self.values, self.recipe, dict.fromkeys(filter(of_teacher, self.values), OF_TEACHER))


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A classifier's figures at temperature 1 and at the fitted one (None where none is best), and its logit gaps."""

    classifier: Classifier
    split: str
    plain: Figures
    fitted: Figures | None
    gaps: LogitGaps

    @property
    def everything(self) -> list[Figures]:
        """The figures at either temperature."""
        return [self.plain] if self.fitted is None else [self.plain, self.fitted]

    @property
    def name(self) -> str:
        """That of the run."""
        return self.classifier.path.name

    @property
    def other_precision(self) -> str:
        """That of its arithmetic, where it is not fp32; else empty."""
        kind = self.classifier.precision.kind
        return "" if kind == "fp32" else kind

    @property
    def which(self) -> str:
        """Checkpoint, split and what precision other than fp32, as names of files have them."""
        return "-".join(filter(None, [self.classifier.checkpoint, self.split, self.other_precision]))

    @property
    def stem(self) -> str:
        """What files of this evaluation are called after."""
        return f"{self.name}-{self.which}"

    @property
    def title(self) -> str:
        """What a diagram of it shows."""
        what = [self.split, f"{self.classifier.checkpoint} checkpoint", self.other_precision]
        return ", ".join(filter(None, what)) + in_brackets(self.classifier.data.note)

    @property
    def outside_the_regime(self) -> str:
        """That it has hard targets and has not learnt its training images, as a clause; empty for others."""
        return regime_missed(self.name, self.plain.values["train_accuracy"]) if self.classifier.hard_targets else ""

    def shown_gaps(self) -> ShownGaps:
        """For a diagram."""
        ideal = self.plain.values.get("logit_gap_ideal", math.inf)
        return ShownGaps(name=self.name, which=self.which, title=self.title, gaps=self.gaps, ideal=ideal)


@dataclass(frozen=True, kw_only=True)
class ShownGaps:
    """What a diagram of logit gaps says of one run, without its images and logits; ideal: infinite if there is none."""

    name: str
    which: str
    title: str
    gaps: LogitGaps
    ideal: float


def evaluate_runs(config: EvaluateConfig) -> Iterator[Evaluated]:
    """Evaluate `config.runs`, or the one of `config.run`, one after the other; images that two share are read once.

    Raises UserError as `evaluate`, of runs that there are not before any work.
    """
    known: tuple[ImageData, ...] = ()
    for path in find_runs(config.runs) or [find_run(config.run)]:
        evaluated = evaluate(replace(config, run=str(path), runs=()), known)
        known = (evaluated.classifier.data,)
        yield evaluated


def evaluate(config: EvaluateConfig, known: Iterable[ImageData] = ()) -> Evaluated:
    """Evaluate `config.run` on a split; known: see Classifier.open.

    Raises UserError for runs, images and settings that do not fit, before any work.
    """
    assert not config.runs, "of several runs evaluate_runs takes one at a time"
    classifier = Classifier.open(
        config.run, config.checkpoint, data=config.data, precision=config.precision, device=config.device, known=known
    )
    if config.results is not None:
        prepare_results(Path(config.results))
    split, validation = classifier.images(config.split), classifier.images(FITTED_ON)
    loss = classifier.config.loss
    prior = label_prior(loss, classifier.images("train"), len(classifier.data.classes))
    logits_NK = classifier.outputs(split, config.split)
    on_validation_NK = logits_NK if config.split == FITTED_ON else classifier.outputs(validation, FITTED_ON)

    def figures(temperature: float, chosen: Mapping[str, str]) -> Figures:
        scores = score_logits(logits_NK, split.labels_N, loss=loss, prior=prior, temperature=temperature)
        exact = {} if split.posteriors_NK is None else exact_figures(scores, split.posteriors_NK)
        recipe = {
            **classifier.recipe(config.split, temperature),
            **chosen,
            "training_command": classifier.manifest["command"],
            "training_threads": classifier.manifest["threads"],
        }
        return Figures(values={**scores.every_figure(), **exact}, recipe=recipe, scores=scores)

    plain, fitted = figures(1.0, temperature_recipe(1.0)), None
    gaps = LogitGapAccumulator().update(logits_NK, split.labels_N).compute()
    plain.values.update(gaps.figures_of_loss(loss.alpha, loss.spread, loss.prior))
    if classifier.taught:
        plain.values.pop("logit_gap_ideal", None)  # its targets were not those of its loss.alpha
    plain.values.update(template_figures(classifier.model.templates))
    plain.values["train_accuracy"] = classifier.training_accuracy()
    plain.values.update(of_training(classifier.path, config.split))
    temperature = fitted_temperature(on_validation_NK, validation.labels_N, config.split)
    if temperature is not None:
        plain.values["fitted_temperature"] = temperature
        fitted = figures(temperature, temperature_recipe("fitted"))
    return Evaluated(classifier=classifier, split=config.split, plain=plain, fitted=fitted, gaps=gaps)


def fitted_temperature(logits_NK: Tensor, labels_N: Tensor, reported: str) -> float | None:
    """The temperature of least NLL on the validation split, or None where none is best.

    Standard error says so then, and where the split that is reported is the same.
    """
    try:
        temperature = fit_temperature(logits_NK, labels_N)
    except ValueError as error:
        print(f"no temperature was fitted: {error}", file=sys.stderr)
        return None
    warn_of_flattery(reported)
    return temperature


def template_figures(templates_KD: Tensor) -> dict[str, float]:
    """Mean norm of the templates, and its standard deviation over classes, absolute and as a share of the mean."""
    norms_K = templates_KD.double().norm(dim=1)
    mean, sd = float(norms_K.mean()), float(norms_K.std(correction=0))
    return {"template_norm": mean, "template_norm_sd": sd, "template_norm_spread": sd / mean if mean else math.nan}


def of_training(path: Path, split: str) -> dict[str, float]:
    """What a run's summary has of its training: the updates at which validation accuracy had 98% and 99% of its final
    value and, beside a student's figures on the test split, those of its teacher, which are of that split too. Empty
    for an unfinished run."""
    run = RunDirectory(path)
    summary = run.read_summary() if run.summary_file.exists() else {}
    taught = filter(of_teacher, summary) if split == "test" else ()
    return {key: float(summary[key]) for key in (*STEPS_TO_REACH, *taught) if key in summary}


def diagrams(evaluated: Evaluated) -> dict[str, Figure]:
    """Reliability with and without the fitted temperature, and risk against coverage, by file name."""
    plain, fitted, stem, name = evaluated.plain, evaluated.fitted, evaluated.stem, evaluated.name
    systems = {f"{name}, T = 1": plain.scores.calibration}
    if fitted is not None:
        systems[f"T = {fitted.scores.temperature:.2f}, fitted"] = fitted.scores.calibration
    values, what = plain.values, evaluated.title
    return {
        f"reliability-{stem}": reliability_diagram(
            systems,
            null_distribution(plain.scores.examples.confidences, BINS).accuracy_band(),
            title=f"{what}: accuracy {values['accuracy']:.3f}, NLL {values['nll']:.3f}",
        ),
        f"risk-coverage-{stem}": risk_coverage_figure(
            {name: plain.scores.risk_coverage()}, title=what, risk_label="risk (share of wrong images)"
        ),
    }


def gap_diagrams(shown: Sequence[ShownGaps]) -> dict[str, Figure]:
    """Logit gaps, by file name: of all runs together, or, where they are too many for one, of each by itself."""
    groups = [shown] if len(shown) <= MOST_TOGETHER else [[each] for each in shown]
    return {
        picture_stem("logit-gaps", [each.name for each in group], group[0].which): logit_gap_figure(
            {each.name: each.gaps for each in group},
            {each.name: each.ideal for each in group},
            title=group[0].title,
            unit="image",
        )
        for group in groups
    }


def store(results: Path, evaluated: Evaluated, *, figure: bool) -> None:
    """Write examples, append the records that are not there yet, then write diagrams; say so on standard error."""
    if evaluated.split != "train":  # megabytes a run, and no test is made image by image on what was trained on
        examples = results / "examples.parquet"
        examples.mkdir(parents=True, exist_ok=True)
        file = pa.BufferOutputStream()
        table = pa.concat_tables([example_table(figures) for figures in evaluated.everything])
        pq.write_table(table, file, compression="zstd", compression_level=9)
        atomic_write(examples / f"{evaluated.stem}.parquet", file.getvalue().to_pybytes())
    records = [record for figures in evaluated.everything for record in figures.records()]
    store_records(results, records, diagrams(evaluated) if figure else {})


def example_table(figures: Figures) -> pa.Table:
    """A row an image."""
    examples, count = figures.scores.examples, len(figures.scores.labels_N)
    columns: Mapping[str, Any] = {
        "image": np.arange(count),
        "label": figures.scores.labels_N.numpy(),
        "predicted": examples.predictions.numpy(),
        "confidence": examples.confidences.numpy(),
        "correct": examples.correct.numpy(),
        "nll": -examples.log_probs.numpy(),
    }
    arrays = [
        pa.array(columns[entry.name]).cast(entry.type)
        if entry.name in columns
        else pa.array([figures.recipe[entry.name]] * count, entry.type)
        for entry in EXAMPLES
    ]
    return pa.Table.from_arrays(arrays, schema=EXAMPLES)
