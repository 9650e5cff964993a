"""What `score` does: a run's figures on a split, their recipe, and diagrams of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure
from tqdm import tqdm

from nmt_ls.decoding import search_config
from nmt_ls.experiment.command_line import UserError
from nmt_ls.measured_run import MeasuredRun
from nmt_ls.metrics.null import calibration_test, null_distribution
from nmt_ls.metrics.plots import reliability_diagram
from nmt_ls.metrics.temperature import check_temperature
from nmt_ls.runs import choose_device, find_run, run_corpus
from nmt_ls.score_records import Figures, prepare_results
from nmt_ls.scoring import BINS, Evaluation, TeacherForced, evaluate, label_prior
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
    results: a directory to whose records.jsonl every figure is appended that is not there yet.
    figure: whether to draw diagrams there too.
    precision: of the arithmetic; auto takes what is fast here.
    device: auto takes CUDA where there is a GPU.
    """

    run: str | None = None
    data: str | None = None
    checkpoint: CheckpointName = "best"
    split: str = "test"
    temperature: float | Literal["fitted"] | None = None
    results: str | None = None
    figure: bool = True
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
    """Figures with their recipe, and diagrams by the names of their files. title: of what they are."""

    title: str
    groups: list[Figures]
    recipe: dict[str, Any]
    diagrams: dict[str, Figure]

    @property
    def figures(self) -> dict[str, float]:
        """Every figure by its name."""
        return {name: value for group in self.groups for name, value in group.values.items()}


def score(config: ScoreConfig) -> Scored:
    """Score a run on a split. Raises UserError for runs, corpora and settings that do not fit, before any work."""
    path = find_run(config.run)
    run = MeasuredRun.open(path, config.checkpoint)
    search = config.search.applied_to(run.config.search)
    if search.samples:
        raise UserError(f"search.samples: {path} draws its translations; search for them, with --search.samples 0")
    temperature = search.temperature if config.temperature is None else config.temperature
    corpus = run_corpus(path, config.data)
    split = corpus.split(config.split)
    if temperature == "fitted":
        corpus.split("validation")
    if config.results is not None:
        prepare_results(Path(config.results))
    translator = Translator.load(path, config.checkpoint, choose_device(config.device), config.precision)
    translator.check_search(search)
    prior = label_prior(run.config.loss, corpus, translator.device)
    search = search_config(temperature, search, path, translator, corpus)
    with tqdm(total=len(split), unit=" sentences", leave=False, disable=None) as bar:
        evaluation = evaluate(translator, split, search, loss=run.config.loss, prior=prior, on_progress=bar.update)
    recipe = {
        **run.recipe(search, translator.precision, split=config.split, device=translator.device),
        "temperature_is": "fitted" if temperature == "fitted" else "given",
        "training_command": run.manifest["command"],
        "training_threads": run.manifest["threads"],
    }
    scored = Scored(
        title=f"{path}, {config.checkpoint} checkpoint, {config.split} split",
        groups=[forced_figures(evaluation.teacher_forced), translation_figures(evaluation)],
        recipe=recipe,
        diagrams={},
    )
    if config.figure and config.results is not None:
        shown = "fitted" if temperature == "fitted" else search.temperature
        stem = f"{path.name}-{config.checkpoint}-{config.split}-T{shown}"
        scored.diagrams[f"reliability-{stem}"] = reliability(scored, evaluation.teacher_forced)
    return scored


def forced_figures(forced: TeacherForced) -> Figures:
    """Likelihood and calibration given the correct prefix; of ECE the floor (95% of a calibrated model's ECEs lie
    below) and the p-value, and the unbiased squared L2 error."""
    test = calibration_test(forced.tokens.confidences, forced.tokens.correct, BINS)
    return Figures(
        values={
            **forced.figures(),
            "ece_floor": test.floor,
            "ece_p_value": test.p_value,
            "squared_l2": test.unbiased_squared_l2,
            "over_confidence": forced.calibration.over_confidence,
            "under_confidence": forced.calibration.under_confidence,
        }
    )


def translation_figures(evaluation: Evaluation) -> Figures:
    """What the translations are worth."""
    return Figures(values=evaluation.translation_figures(), searched=True, signatures=evaluation.translation.signatures)


def reliability(scored: Scored, forced: TeacherForced) -> Figure:
    """The reliability diagram, with the band of a calibrated model."""
    recipe, figures = scored.recipe, scored.figures
    return reliability_diagram(
        {f"{recipe['run']} ({recipe['checkpoint']}), {recipe['split']}": forced.calibration},
        null_distribution(forced.tokens.confidences, BINS).accuracy_band(),
        title=f"ECE {figures['ece']:.3f}, NLL {figures['nll']:.3f}, BLEU {figures['bleu']:.1f}",
    )
