"""What a study left, as claims and tables read it: figures of runs from records.jsonl, and the sums that belong to
sentences from sentences.parquet, or to images from examples.parquet. No run, corpus or model is opened.

Two kinds of records. *Scored* (`score`): all figures of a checkpoint at one temperature, which was given or fitted.
*Swept* (`sweep`): NLL and calibration at many temperatures, and translations at some. Both name the run, the weights
and the dropout; of a run that was trained on, only the newest weights count.

Shapes: J temperatures, S sentences, N images, B bins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from nmt_ls.claims import Setting
from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.records import Record, read_records
from nmt_ls.experiment.study_records import last_of_each
from nmt_ls.metrics.calibration import MOMENTS
from nmt_ls.metrics.inputs import FloatArray
from nmt_ls.metrics.slices import sliced_sums
from nmt_ls.sweep_cells import DIGITS, SENTENCES_FOLDER, read_sentences

RECIPE = ("corpus", "updates", "train_size", "init_weights")
"""What has to be the same in all runs of a setting: a table has equal updates, from weights drawn afresh or given."""
FIGURES_IN = "fp32"
"""The arithmetic of figures that are compared; those of an evaluation in another, beside them, are not read."""
PRECISION = "training_precision"
"""What has to be the same in all runs of one seed."""
SETTINGS = ("settings", "sizes")
"""Likewise, of runs whose records have it: a name for the rest of an image classifier's training configuration, and the
sizes of a translator."""
FRESH = "fresh"
"""The split of figures on targets drawn afresh from a known distribution: they stand beside those of the test split."""
COURSE = "update"
"""In a signature: the figure is one of many, at this update of a run's training."""
APART = ("slice", "estimator", "sample_tokens")
"""What tells figures of one name apart: it becomes part of the name."""
EXAMPLES = "examples.parquet"
"""The folder in which the evaluation of classifiers leaves what belongs to each image."""
OF_TEACHERS = tuple(f"teacher_{key}" for key in ("checkpoint", "model", "updates", "train_size", "corpus"))
"""Likewise, of students."""
LOSS = ("spread", "prior")
"""What has to be the same in all runs of one α."""


class NotMeasuredError(Exception):
    """What a test needs is not among the results; the message says what."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run's checkpoint on a split, and what was measured of it.

    scored: figures by whether the temperature was fitted. swept: NLL, ECE and squared L2 by temperature. decoded:
    figures of translations by temperature. search: how those were made, and sacrebleu's signatures, as
    `sacrebleu: <figure>`.
    """

    name: str
    signature: Mapping[str, Any]
    scored: dict[bool, dict[str, float]] = field(default_factory=dict)
    swept: dict[float, dict[str, float]] = field(default_factory=dict)
    decoded: dict[float, dict[str, float]] = field(default_factory=dict)
    fitted_temperature: list[float] = field(default_factory=list)  # one, where it was fitted
    search: dict[str, str] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)  # of which a figure of this name is the mean
    classes: dict[str, str] = field(default_factory=dict)  # that a figure of this name is of, where it is not of all
    images: dict[str, int] = field(default_factory=dict)  # of how many a figure of this name is, where it is not of all
    course: dict[str, dict[int, float]] = field(default_factory=dict)  # values by update, of what training recorded
    commands: dict[str, None] = field(default_factory=dict)

    @property
    def alpha(self) -> float:
        return float(self.signature["alpha"])

    @property
    def seed(self) -> int:
        return int(self.signature["seed"])

    @property
    def taught(self) -> bool:
        """Whether it is a student, which learnt from a teacher."""
        return "teacher_weights" in self.signature

    @property
    def of_student(self) -> bool:
        """Whether its teacher is a student itself: claims are not about such."""
        return "teacher_teacher" in self.signature


class Estimate(NamedTuple):
    """What an estimator of ECE makes of samples of so many tokens; sd over samples, if there were several."""

    mean: float
    sd: float | None
    samples: int


def estimates(run: Run, *, fitted: bool = False) -> dict[tuple[str, str, int], Estimate]:
    """By what is recorded (such as estimated_ece), estimator and size of sample."""
    figures, found = run.scored.get(fitted, {}), {}
    for name, value in figures.items():
        kind, *parts = name.split(" ")
        if kind.startswith("estimated_") and not kind.endswith("_sd") and len(parts) == 2:
            sd = figures.get(f"{kind}_sd {' '.join(parts)}")
            found[kind, parts[0], int(parts[1])] = Estimate(value, sd, run.samples.get(name, 1))
    return found


def scored_values(runs: Sequence[Run], name: str, *, fitted: bool = False) -> list[float]:
    """A figure of those runs that have it, at temperature 1 or at the one fitted to each."""
    return [run.scored[fitted][name] for run in runs if name in run.scored.get(fitted, {})]


def fitted_text(runs: Sequence[Run]) -> str:
    """The temperature of a table's row whose runs have one fitted to each: their mean."""
    return f"fitted, {np.mean([run.fitted_temperature[0] for run in runs]):.3f}"


def seeds_of_precisions(runs: Iterable[Run]) -> dict[str, list[int]]:
    """The precisions in which runs were trained, each with its seeds, in order."""
    seeds: dict[str, set[int]] = {}
    for run in runs:
        seeds.setdefault(str(run.signature.get(PRECISION)), set()).add(run.seed)
    return {precision: sorted(seeds[precision]) for precision in sorted(seeds)}


def precisions_text(seeds: Mapping[str, Sequence[int]]) -> str:
    """Precisions with their seeds, such as `bf16: 1, 2; fp32: 3`."""
    return "; ".join(f"{precision}: {', '.join(map(str, found))}" for precision, found in seeds.items())


def means_of(runs: Sequence[Run], names: Iterable[str], *, fitted: bool = False) -> dict[str, float]:
    """`mean_and_sd` of each of these figures that some run has."""
    found: dict[str, float] = {}
    for name in names:
        if values := scored_values(runs, name, fitted=fitted):
            found |= mean_and_sd(name, values)
    return found


def mean_and_sd(name: str, values: Sequence[float]) -> dict[str, float]:
    """`name` and, of two seeds or more, `name sd`."""
    found = {name: float(np.mean(values))}
    return found | {f"{name} sd": float(np.std(values, ddof=1))} if len(values) > 1 else found


class SettingResults:
    """The results of a setting's runs.

    Raises UserError where records contradict the setting: another dropout than it says.
    """

    def __init__(self, setting: Setting, folder: Path, records: Sequence[Record]) -> None:
        self.setting, self.folder = setting, folder
        ours = [record for record in records if fnmatch(str(record.signature.get("run", "")), setting.runs)]
        self.silent = sorted({str(r.signature["run"]) for r in ours if "dropout" not in r.signature})
        """Runs whose records do not say their dropout: they are not used."""
        ours = [record for record in ours if "dropout" in record.signature]
        for record in ours:
            if record.signature["dropout"] != setting.dropout:
                raise UserError(
                    f"{folder}/records.jsonl: {record.signature['run']} was trained with dropout "
                    f"{record.signature['dropout']}, and its setting ({setting.title}) says {setting.dropout}"
                )
        self._runs = {
            (split, checkpoint): self._read(ours, split, checkpoint)
            for split in (setting.split, setting.choose_on)
            for checkpoint in sorted({str(record.signature.get("checkpoint")) for record in ours})
        }
        self._sentences = cache(self._read_sentences)
        self.of_images = any("model" in record.signature for record in ours)
        self.unit = "image" if self.of_images else "sentence"

    def _read(self, records: Iterable[Record], split: str, checkpoint: str) -> dict[str, Run]:
        found: dict[str, Run] = {}
        for record in records:
            signature = record.signature
            here = signature.get("split") == split or (split == self.setting.split and signature.get("split") == FRESH)
            if not here or signature.get("checkpoint") != checkpoint:
                continue
            name = str(signature["run"])
            run = found.get(name)
            if run is None or run.signature.get("weights") != signature.get("weights"):
                found[name] = run = Run(name=name, signature=signature)  # newer weights replace older ones
            self._add(run, record)
        return found

    def _add(self, run: Run, record: Record) -> None:
        signature = record.signature
        if not str(signature.get("precision", FIGURES_IN)).startswith(FIGURES_IN):
            return
        temperature = round(float(signature.get("temperature", 1.0)), DIGITS)
        name = " ".join([record.name, *(str(signature[key]) for key in APART if key in signature)])
        if COURSE in signature:
            run.course.setdefault(record.name, {})[int(signature[COURSE])] = record.value
            return
        search = (
            signature.get("beam", self.setting.beam),
            signature.get("length_penalty", self.setting.length_penalty),
        )
        if search != (self.setting.beam, self.setting.length_penalty) or "search" in signature:
            return
        if "temperature_is" in signature:
            fitted = signature["temperature_is"] == "fitted"
            if not fitted and temperature != 1.0:
                return
            run.scored.setdefault(fitted, {})[name] = record.value
            if fitted:
                run.fitted_temperature[:] = [temperature]
        else:
            swept = run.decoded if "beam" in signature else run.swept
            swept.setdefault(temperature, {})[name] = record.value
        if "images" in signature:
            run.images[name] = int(signature["images"])
        if "classes" in signature:
            run.classes[name] = ", ".join(map(str, signature["classes"]))
        if "samples" in signature:
            run.samples[name] = int(signature["samples"])
        run.commands[record.command] = None
        for key in ("beam", "length_penalty"):
            if key in signature:
                run.search[key] = str(signature[key])
        if "sacrebleu" in signature:
            run.search[f"sacrebleu: {record.name}"] = str(signature["sacrebleu"])

    @property
    def checkpoints(self) -> list[str]:
        """Those that were measured on the reported split."""
        return [checkpoint for (split, checkpoint), runs in self._runs.items() if split == self.setting.split and runs]

    def runs(
        self,
        alpha: float | None = None,
        *,
        split: str | None = None,
        checkpoint: str | None = None,
        taught: bool | None = False,
    ) -> list[Run]:
        """Runs with any figure on a split (the reported one), by α and seed: those that learnt from labels, (taught)
        from a teacher, or (None) both."""
        found = self._runs.get((split or self.setting.split, checkpoint or self.setting.checkpoint), {}).values()
        return sorted(
            (run for run in found if taught in (None, run.taught) and (alpha is None or run.alpha == alpha)),
            key=lambda run: (run.alpha, run.seed),
        )

    @property
    def alphas(self) -> list[float]:
        """Those that were measured on the reported split."""
        return sorted({run.alpha for run in self.runs()})

    def by_alpha(self, name: str) -> dict[float, list[float]]:
        """A figure of the runs of every α that has it, at temperature 1."""
        values = {alpha: scored_values(self.runs(alpha), name) for alpha in self.alphas}
        return {alpha: seeds for alpha, seeds in values.items() if seeds}

    def comparable(self, sides: Sequence[Sequence[Run]]) -> None:
        """Raises NotMeasuredError where runs differ in what has to be the same, or two of a side have one seed.

        Some seeds may have been trained in another precision than the rest, if they are the same seeds on every side.
        """
        runs = list({run.name: run for side in sides for run in side}.values())
        for key in (*RECIPE, *SETTINGS, *OF_TEACHERS):
            values = {str(run.signature.get(key)) for run in runs if key in run.signature or key in RECIPE}
            if len(values) > 1:
                shown = ", ".join(sorted(value[:12] for value in values))
                raise NotMeasuredError(f"the runs differ in {key} ({shown}), so that nothing can be compared")
        for name in {name for run in runs for name in run.classes}:
            if len(of := {run.classes[name] for run in runs if name in run.classes}) > 1:
                raise NotMeasuredError(f"{name} is not of the same classes in all runs ({'; '.join(sorted(of))})")
        for alpha in {run.alpha for run in runs}:
            same = [run for run in runs if run.alpha == alpha]
            for key in LOSS:
                if len({str(run.signature.get(key)) for run in same}) > 1:
                    raise NotMeasuredError(f"the runs with α = {alpha:g} differ in {key}")
        for side in sides:
            if len({(run.alpha, run.seed) for run in side}) < len(side):
                raise NotMeasuredError(f"two runs have α = {side[0].alpha:g} and one seed")
        kinds = [seeds_of_precisions(side) for side in sides]
        if len({precision for kind in kinds for precision in kind}) > 1 and any(kind != kinds[0] for kind in kinds):
            raise NotMeasuredError(
                f"the runs differ in {PRECISION} ({' against '.join(map(precisions_text, kinds))}), and not alike on "
                "every side, so that nothing can be compared"
            )

    def sentences(self, run: Run, column: str, temperatures: Sequence[float]) -> FloatArray:
        """A column of the sentences of the reported split: [J, S, 1 or more].

        Raises NotMeasuredError where a temperature is not there.
        """
        array: FloatArray = self._sentences(run.name, str(run.signature["weights"]), column, tuple(temperatures))
        return array

    def _read_sentences(self, name: str, weights: str, column: str, temperatures: tuple[float, ...]) -> FloatArray:
        setting = self.setting
        cell: dict[str, Any] = {
            "run": name,
            "checkpoint": setting.checkpoint,
            "weights": weights,
            "split": setting.split,
        }
        if column == "bleu_statistics":
            cell |= {"beam": setting.beam, "length_penalty": setting.length_penalty}
        folder = self.folder / SENTENCES_FOLDER
        rows = read_sentences(folder, cell, column, temperatures[:1])
        sentences = len(rows)
        if len(temperatures) > 1:
            rows = read_sentences(folder, cell, column, temperatures)
        if sentences == 0 or len(rows) != len(temperatures) * sentences:
            raise NotMeasuredError(f"the {setting.split} sentences of {name} are not (all) in {folder}")
        return rows.reshape(len(temperatures), sentences, -1)

    def fitted_sums(self, run: Run, column: str) -> FloatArray:
        """bin_sums [S, 6, B], or nll beside tokens [S, 2], of the sentences at the temperature fitted to the run.

        Raises NotMeasuredError where none was fitted, or its sentences are not there.
        """
        if not run.fitted_temperature:
            raise NotMeasuredError(f"{run.name} has no fitted temperature on {self.setting.split}")
        names = ("nll", "tokens") if column == "nll" else (column,)
        parts = [self.sentences(run, name, run.fitted_temperature)[0] for name in names]
        sums = np.concatenate([part.astype(np.float64) for part in parts], -1)
        return sums.reshape(len(sums), MOMENTS, -1) if column == "bin_sums" else sums

    def images(self, run: Run, *, fitted: bool) -> dict[str, FloatArray]:
        """What is kept of each image of the reported split, by its row, at temperature 1 or at the one fitted to the
        run: confidence, correct and NLL, each [N].

        Raises NotMeasuredError where it is not there.
        """
        how = " at a fitted temperature" if fitted else ""
        missing = f"the {self.setting.split} images of {run.name} are not in {self.folder / EXAMPLES}{how}"
        # one file a run, checkpoint and split; another precision's has a name of its own
        file = self.folder / EXAMPLES / f"{run.name}-{self.setting.checkpoint}-{self.setting.split}.parquet"
        if not file.is_file():
            raise NotMeasuredError(missing)
        table = pq.read_table(
            file,
            columns=["image", "confidence", "correct", "nll"],
            filters=[
                ("run", "=", run.name),
                ("checkpoint", "=", self.setting.checkpoint),
                ("weights", "=", run.signature["weights"]),
                ("split", "=", self.setting.split),
                ("temperature_is", "=", "fitted" if fitted else "given"),
            ],
        ).sort_by("image")
        if len(table) == 0:
            raise NotMeasuredError(missing)
        return {name: table[name].to_numpy() for name in ("confidence", "correct", "nll")}

    def image_sums(self, run: Run, column: str, *, fitted: bool) -> FloatArray:
        """The same as sums of one image each: bin_sums [N, 6, B], or nll or correct beside a count of 1, [N, 2]."""
        kept = self.images(run, fitted=fitted)
        count = len(kept["correct"])
        if column == "bin_sums":
            return sliced_sums(kept["confidence"], kept["correct"], np.arange(count), count)
        return np.stack([kept[column].astype(np.float64), np.ones(count)], -1)


@lru_cache(maxsize=1)
def _records_of(file: Path, written: int, size: int) -> Sequence[Record]:  # noqa: ARG001
    """A file's records, which the settings of a study have in common."""
    return last_of_each(read_records(file))


def read_results(setting: Setting, root: Path) -> SettingResults:
    """The results of a setting below the folder of all results; empty where there are none.

    What its data's note says ("own split") joins the setting's caution, if that does not say it already; so does in
    what precision which seeds were trained, where it is not the same.
    """
    folder = root / setting.results
    file = folder / "records.jsonl"
    records: Sequence[Record] = ()
    if file.exists():
        records = _records_of(file, file.stat().st_mtime_ns, file.stat().st_size)
    found = SettingResults(setting, folder, records)
    notes = dict.fromkeys(str(run.signature["note"]) for run in found.runs(taught=None) if run.signature.get("note"))
    more = [note for note in notes if note.lower() not in setting.caution.lower()]
    if len(seeds := seeds_of_precisions(found.runs(taught=None))) > 1:
        more.append(f"trained, by seed, in {precisions_text(seeds)}")
    found.setting = replace(setting, caution="; ".join(filter(None, [setting.caution, *more])))
    return found
