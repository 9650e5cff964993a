"""What translation gives the engine: the configuration of a run, its batches, loss, validation and final summary."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nmt_ls.batching import Batch, epoch_batches
from nmt_ls.corpus import Corpus, Split
from nmt_ls.distillation import Teacher, open_teacher
from nmt_ls.embedded import EmbeddedSizes, embedded_directory, prepare_embedded
from nmt_ls.experiment.checkpoint import CheckpointName, checkpoint_exists, load_weights, weights_id
from nmt_ls.experiment.command_line import UserError, config_to_dict
from nmt_ls.experiment.distillation import DistillationConfig, check_weights, settle_teacher
from nmt_ls.experiment.distributed import Team
from nmt_ls.experiment.engine import EngineConfig, StepLoss
from nmt_ls.experiment.precision import Precision
from nmt_ls.experiment.processor import choose_device
from nmt_ls.experiment.records import Signature, provenance
from nmt_ls.experiment.run_directory import RunDirectory
from nmt_ls.experiment.schedule import OptimizerConfig, ScheduleConfig
from nmt_ls.experiment.training_run import Outcome, fit_and_summarise, follow, settle, train_in
from nmt_ls.losses import LossConfig, fused_loss_and_nll
from nmt_ls.runs import check_vocabularies
from nmt_ls.scoring import BINS, evaluate, label_prior, score_batches, split_batches, translate_split
from nmt_ls.search import SearchConfig
from nmt_ls.transformer import Transformer, TransformerConfig
from nmt_ls.translator import Hypothesis, Translator, with_vocabularies
from nmt_ls.truth import bleu_ceilings, is_embedded, true_entropy
from nmt_ls.vocabulary import PAD

EMBEDDED_ROOT = Path("data")
GRAMMAR_SEED = 0
EXAMPLES = 3
VALIDATED = ("loss", "nll", "accuracy", "ece")
"""Figures of a validation while training, besides BLEU; `engine.monitor` chooses among them and it."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run. Without a corpus it is the embedded one's, whose sizes and settings are the defaults here.

    data: a prepared corpus; left out, the embedded one, prepared on first use under data/.
    out: the run's directory; left out, runs/CORPUS-lsALPHA-sSEED, of a student …-from-TEACHER-T4-sSEED for T = 4.
        {seed} stands for the seed.
    seed: of the initial weights, the order of batches and dropout.
    precision: fp32, bf16, or auto: what this processor does fastest, measured.
    device: auto takes CUDA where there is a GPU.
    max_tokens: of a batch, padding included, on the longer side.
    validation_sentences: translated at each validation for BLEU (the first ones of the split); 0 is none.
    init_from: a run whose weights to start from, at its checkpoint init_checkpoint.
    checkpoints: which ones the summary scores on the test split; the first gives its top-level figures.
    threads: CPU threads; 0 leaves PyTorch's choice.

    In a student's metrics.jsonl the `loss` of training lines is that against its teacher; everywhere else it is that
    of its labels, which are not smoothed.
    """

    data: str | None = None
    out: str | None = None
    seed: int = 1
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    max_tokens: int = 2048
    validation_sentences: int = 100
    init_from: str | None = None
    init_checkpoint: CheckpointName = "best"
    checkpoints: tuple[CheckpointName, ...] = ("best", "averaged", "last")
    embedded: EmbeddedSizes = field(default_factory=EmbeddedSizes)
    loss: LossConfig = field(default_factory=LossConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    model: TransformerConfig = field(default_factory=lambda: TransformerConfig(preset="mini"))
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=4e-3))
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(kind="linear", warmup_updates=300))
    engine: EngineConfig = field(
        default_factory=lambda: EngineConfig(max_updates=1600, validate_every=400, average_last=2)
    )
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be positive, got {self.max_tokens}")
        for key in ("seed", "threads", "validation_sentences"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must not be negative, got {getattr(self, key)}")
        if self.engine.monitor not in (*VALIDATED, "bleu"):
            raise ValueError(f"engine.monitor: choose {', '.join(VALIDATED[1:])}, bleu, not {self.engine.monitor!r}")
        if self.engine.monitor == "bleu" and self.validation_sentences == 0:
            raise ValueError("engine.monitor is bleu: validation_sentences must be above 0")
        if not self.checkpoints:
            raise ValueError("checkpoints: name at least one of best, averaged, last")
        if "averaged" in self.checkpoints and self.engine.average_last == 0:
            raise ValueError("checkpoints: averaged needs engine.average_last above 0")
        self.distillation.check(self.loss.alpha)
        if self.search.samples:
            raise ValueError("search.samples: validation and the summary translate by search; samples belong to decode")
        if self.schedule.needs_total:
            self.schedule.resolved(self.engine.max_updates)

    def with_seed(self) -> TrainConfig:
        """{seed} in the names of the run and of its teacher replaced."""
        out = None if self.out is None else self.out.replace("{seed}", str(self.seed))
        return replace(self, out=out, distillation=self.distillation.with_seed(self.seed))


class TranslationTask:
    """Corpus, model and settings of a run, as the engine wants to see them."""

    def __init__(
        self,
        config: TrainConfig,
        corpus: Corpus,
        model: Transformer,
        precision: Precision,
        teacher: Teacher | None = None,
    ) -> None:
        self.teacher = teacher
        self.config, self.corpus, self.model, self.precision = config, corpus, model, precision
        self.training, self.validation = corpus.split("train"), corpus.split("validation")
        self.prior = label_prior(config.loss, corpus, model.output_weight.device)
        # figures are of fp32 arithmetic, whatever trains
        self.translator = Translator(
            model, corpus.source_vocabulary, corpus.target_vocabulary, replace(precision, kind="fp32")
        )

    @property
    def checksum(self) -> str:
        """Of the corpus."""
        return self.corpus.checksum

    def batches(self, epoch: int) -> Sequence[Batch]:
        """The batches of an epoch: a pure function of seed and epoch."""
        config = self.config
        return epoch_batches(self.training, max_tokens=config.max_tokens, seed=config.seed, epoch=epoch)

    def loss(self, model: nn.Module, batch: Batch) -> StepLoss:
        """Loss of a batch against smoothed labels, or a teacher's targets, summed over its tokens, and beside it the
        hard-label NLL."""
        batch = batch.to(self.translator.device)
        hidden_BTD: Tensor = model(batch.source_BS, batch.target_in_BT)
        if self.teacher is not None:
            total, nll = self.teacher.loss(hidden_BTD, self.model.output_weight, batch)
            return StepLoss(total, batch.tokens, {"nll": nll})
        smoothing = self.config.loss
        total, nll = fused_loss_and_nll(
            hidden_BTD.flatten(0, 1),
            self.model.output_weight,
            batch.target_out_BT.flatten(),
            smoothing.alpha,
            self.prior,
            smoothing.spread,
            ignore_index=PAD,
            reduction="sum",
        )
        return StepLoss(total, batch.tokens, {"nll": nll})

    def validate(self, _: nn.Module) -> dict[str, float]:
        """Smoothed loss, NLL, token accuracy and ECE on the validation split; BLEU of its first sentences."""
        config = self.config
        scored = score_batches(self.model, split_batches(self.validation), loss=config.loss, prior=self.prior)
        everything = scored.figures()
        figures = {name: everything[name] for name in VALIDATED}
        if config.validation_sentences:
            scores = translate_split(self.translator, self.validation, config.search, config.validation_sentences)[1]
            figures["bleu"] = scores.bleu
        return figures


def train_together(config: TrainConfig) -> Outcome | None:
    """`train` with the processes that torchrun started, if it did: they share the batches of every update.

    None in all of them but the first, which leads and has the outcome.
    """
    device = choose_device(config.device)
    with Team.join(device) as team:
        if team.leads:
            return train(config, team)
        follow(team, lambda _, manifest: new_task(config, Corpus.load(manifest["corpus"]), manifest, device))
    return None


def train(config: TrainConfig, team: Team | None = None) -> Outcome:
    """Train, or go on with, the run that `config` describes, and score it on the test split.

    team: the processes that share its updates; left out, this one is alone.

    Raises UserError for whatever of the configuration, the corpus or the run's directory does not fit.
    """
    device, team = choose_device(config.device), team or Team()
    config = config.with_seed()
    corpus = open_corpus(config)
    path = Path(config.out or default_out(config, corpus))
    begun, precision = settle(path, threads=config.threads, precision=config.precision, device=device)
    manifest = {
        **provenance(device),
        "processes": team.size,
        "precision": precision.to_dict(),
        "attention": begun.get("attention") or {"form": config.model.attention},
        "corpus": str(corpus.directory.resolve()),
        "corpus_checksum": corpus.checksum,
        "corpus_source": corpus.manifest["source"],
        **init_of(config, begun),
    }
    teacher, known = settle_teacher(
        config.distillation,
        path,
        begun,
        config.engine.max_updates,
        lambda: open_teacher(config.distillation, corpus, device),
    )
    manifest |= known

    def work(run: RunDirectory) -> Outcome:
        pairs = len(corpus.split("train"))
        print(f"{run.path}: {corpus.directory}, {pairs:,} pairs; {precision.reason}", file=sys.stderr)
        corpus.copy_vocabulary(run.path)
        task = new_task(config, corpus, manifest, device, teacher)
        if config.init_from is not None and not checkpoint_exists(run.checkpoints / "last"):
            start_from(task.model, corpus, Path(config.init_from), config.init_checkpoint, manifest)
        return fit_and_summarise(task, run, lambda: summarise(run, task), unit="tokens", team=team)

    return train_in(
        path,
        config_to_dict(config_of(config, corpus)),
        manifest,
        work,
        defaults=config_to_dict(TrainConfig()),
        must_match=("corpus_checksum", "teacher"),
    )


def default_out(config: TrainConfig, corpus: Corpus) -> str:
    """The directory of a run that was given none."""
    name = "grammar" if is_embedded(corpus) and config.data is None else corpus.directory.name
    return f"runs/{name}-{config.distillation.short_name(config.loss.alpha)}-s{config.seed}"


def config_of(config: TrainConfig, corpus: Corpus) -> TrainConfig:
    """The configuration with the corpus's vocabulary sizes in its model."""
    return replace(config, model=with_vocabularies(config.model, corpus.source_vocabulary, corpus.target_vocabulary))


def new_task(
    config: TrainConfig,
    corpus: Corpus,
    manifest: Mapping[str, Any],
    device: torch.device,
    teacher: Teacher | None = None,
) -> TranslationTask:
    """A run's task with freshly drawn weights; precision and form of attention are its manifest's, and the teacher,
    where it is not given.

    Raises UserError where the teacher is another than the manifest's.
    """
    config = config_of(config, corpus)
    torch.manual_seed(config.seed)
    model = Transformer(replace(config.model, attention=manifest["attention"]["form"])).to(device)
    if teacher is None and config.distillation.teacher is not None:
        teacher = open_teacher(config.distillation.with_seed(config.seed), corpus, device)
    if teacher is not None:
        check_weights(config.distillation.teacher, teacher.facts, manifest["teacher"])
    return TranslationTask(config, corpus, model, Precision.from_manifest(manifest["precision"]), teacher)


def open_corpus(config: TrainConfig) -> Corpus:
    """The corpus that was named, or the embedded one. Raises UserError where it is not what its checksums say."""
    if config.data is None:
        directory = embedded_directory(EMBEDDED_ROOT, GRAMMAR_SEED, config.embedded)
        print(f"no --data: the embedded corpus, in {directory}", file=sys.stderr)
        corpus = prepare_embedded(directory, GRAMMAR_SEED, config.embedded)
    else:
        corpus = Corpus.load(config.data)
    corpus.verify()
    return corpus


def summarise(run: RunDirectory, task: TranslationTask) -> dict[str, Any]:
    """Figures of each of `config.checkpoints` on the test split; the first one's nll, ece and bleu at top level too.

    On the embedded corpus also `entropy` (the true mean −log p* of the same targets, nats a piece) and BLEU's ceilings.
    """
    config, corpus, translator = task.config, task.corpus, task.translator
    split = corpus.split("test")
    figures: dict[str, dict[str, float]] = {}
    examples: list[dict[str, str]] = []
    signatures: dict[str, str] = {}
    for name in config.checkpoints:
        translator.model.load_state_dict(load_weights(run.checkpoints / name))
        translator.model.eval()
        print(f"scoring the {name} checkpoint on {len(split):,} test sentences", file=sys.stderr)
        evaluation = evaluate(translator, split, config.search, loss=config.loss, prior=task.prior)
        figures[name] = evaluation.figures()
        examples = examples or example_translations(split, evaluation.hypotheses)
        signatures = evaluation.translation.signatures
    first = next(iter(figures))
    summary: dict[str, Any] = {
        **{key: figures[first][key] for key in ("nll", "ece", "bleu")},
        "checkpoint": first,
        "split": "test",
        "checkpoints": figures,
        **({} if task.teacher is None else task.teacher.figures(task.training)),
        "examples": examples,
        "translation_signatures": signatures,
        "signature": run_signature(
            config,
            corpus.checksum,
            translator.precision,
            split="test",
            device=translator.device,
            teacher=None if task.teacher is None else task.teacher.facts,
            init=run.read_manifest().get("init"),
        ).to_dict(),
    }
    if is_embedded(corpus):
        print("computing what the grammar itself reaches", file=sys.stderr)
        summary |= {"entropy": true_entropy(split), **bleu_ceilings(split)}
    return summary


def example_translations(split: Split, hypotheses: Sequence[Sequence[Hypothesis]]) -> list[dict[str, str]]:
    """A few sentences of a split with their reference and translation."""
    return [
        {"source": split.source_text(row), "reference": split.references(row)[0], "translation": best[0].text}
        for row, best in enumerate(hypotheses[:EXAMPLES])
    ]


def run_signature(
    config: TrainConfig,
    corpus_checksum: str,
    precision: Precision,
    *,
    split: str | None,
    device: str | torch.device = "cpu",
    teacher: Mapping[str, Any] | None = None,
    init: Mapping[str, Any] | None = None,
) -> Signature:
    """The recipe of a run's figures, on a split or (None) on other text; teacher: that of a student, and init: what
    it was started from, as its manifest has them."""
    loss, search = config.loss, config.search
    return Signature.of(
        provenance(device),
        alpha=loss.alpha,
        spread=loss.spread,
        prior=loss.prior,
        temperature=search.temperature,
        beam=search.beam,
        length_penalty=f"{search.length_penalty_kind}:{search.length_penalty:g}",
        bins=BINS,
        split=split,
        seed=config.seed,
        precision=precision.label(),
        corpus=corpus_checksum,
        extras=config.distillation.recipe(teacher) | ({"init_weights": init["weights"]} if init else {}),
    )


def init_of(config: TrainConfig, begun: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of the weights that a run starts from; nothing where it draws its own.

    begun: its manifest, if it is there already: going on needs no other run.
    Raises UserError where there are no such weights.
    """
    if config.init_from is None or begun:
        return {"init": begun["init"]} if "init" in begun else {}
    source = RunDirectory(config.init_from)
    try:
        weights = weights_id(source.checkpoints / config.init_checkpoint)
    except UserError as error:
        raise UserError(f"init_from: {error}") from None
    return {"init": {"run": source.path.name, "checkpoint": config.init_checkpoint, "weights": weights}}


def start_from(
    model: Transformer, corpus: Corpus, run: Path, checkpoint: CheckpointName, manifest: Mapping[str, Any]
) -> None:
    """Load another run's weights; manifest: of the one that starts from them.

    Raises UserError where there are none, or others than when this one was begun, or of other vocabularies or sizes.
    """
    folder = RunDirectory(run).checkpoints / checkpoint
    try:
        check_vocabularies(run, corpus)
        weights, found = load_weights(folder), weights_id(folder)
    except UserError as error:
        raise UserError(f"init_from: {error}") from None
    if found != manifest.get("init", {}).get("weights", found):
        raise UserError(
            f"init_from: {folder} has other weights than when this run was begun, and it has no checkpoint of its own "
            "yet; begin it again under another --out"
        )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        what = " ".join(str(error).split())[:160]
        raise UserError(f"init_from: {run} is a model of another shape ({what}); start from one like it") from None
