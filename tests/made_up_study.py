"""Results of studies that never ran, whose right verdicts are known: records and sentence sums of made-up translators.

Shapes: S sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

from nmt_ls import sweep_cells
from nmt_ls.experiment.records import Record, append_records
from nmt_ls.metrics.calibration import (
    calibration_from_sums,
    debiased_l1_from_sums,
    ece_from_sums,
    unbiased_squared_l2_from_sums,
)
from nmt_ls.metrics.slices import sliced_sums
from nmt_ls.metrics.translation import bleu_from_statistics
from nmt_ls.sweep_cells import Ledger, list_column, part_stem, rounded_temperature, sentence_table

INVERSES = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.25)
DECODED = (0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
TOKENS = 12  # of a sentence
BOTH = ("validation", "test")


@dataclass(frozen=True, kw_only=True)
class Translator:
    """What is true of a made-up recipe: its over-confidence, NLL and n-gram precision at a temperature."""

    alpha: float
    seeds: Sequence[int] = (1, 2, 3)
    gap: Callable[[float], float] = lambda _: 0.0
    nll: Callable[[float], float] = lambda _: 2.0
    precision: Callable[[float], float] = lambda _: 0.5
    scored: dict[str, float] = field(default_factory=dict)
    between_seeds: float = 0.0  # sd of the precision over seeds 1, 2 and 3
    own_luck: bool = False  # or that of all translators, sentence by sentence


def write_study(
    folder: Path,
    translators: Sequence[Translator],
    *,
    sentences: int = 600,
    splits: Sequence[str] = ("test",),
    prefix: str = "fake-de",
    **signature: Any,
) -> None:
    """Records and sentence sums of every seed; on BOTH splits where temperatures are chosen."""
    with mock.patch.object(sweep_cells, "COMPRESSION", 1):  # 9 takes longer than all the rest
        for translator in translators:
            for seed in translator.seeds:
                for split in splits:
                    _write_run(folder, translator, seed, split, sentences, prefix, signature)


def _write_run(
    folder: Path,
    translator: Translator,
    seed: int,
    split: str,
    sentences: int,
    prefix: str,
    changes: dict[str, Any],
) -> None:
    rng = np.random.default_rng([seed, int(1000 * translator.alpha), split == "test"])
    shared = np.random.default_rng([7, split == "test"])  # of the sentences, which all systems find as hard
    confidences_SN = shared.uniform(0.2, 0.95, (sentences, TOKENS)).ravel()
    hard_SN = shared.uniform(size=confidences_SN.size)
    index = np.repeat(np.arange(sentences), TOKENS)
    nll_noise_S, draws_SN = shared.normal(0, 0.3, sentences), shared.uniform(size=(sentences, TOKENS))
    if translator.own_luck:
        draws_SN = rng.uniform(size=(sentences, TOKENS))
    shift = translator.between_seeds * (seed - 2)
    signature = {
        "alpha": translator.alpha, "spread": "all", "prior": "uniform", "seed": seed, "split": split, "dropout": 0.3,
        "run": f"{prefix}-ls{translator.alpha}-s{seed}", "weights": f"{seed}{translator.alpha}".ljust(16, "f"),
        "checkpoint": "last", "corpus": "c0ffee", "updates": 1000, "training_precision": "fp32", **changes,
    }  # fmt: skip
    ledger = Ledger(folder)
    stem = part_stem(signature)
    tables, records = list[pa.Table](), list[Record]()

    def add(name: str, value: float, **more: Any) -> None:
        records.append(Record(name=name, value=value, signature=signature | more, command="python -m made_up"))

    grid = [rounded_temperature(inverse) for inverse in INVERSES]
    fitted = min(grid, key=translator.nll)
    for t in grid:
        correct_SN = hard_SN < np.clip(confidences_SN - translator.gap(t), 0, 1)
        sums_SMB = sliced_sums(confidences_SN, correct_SN, index, sentences, 15)
        nll_S = TOKENS * translator.nll(t) + nll_noise_S
        columns = {
            "nll": pa.array(nll_S),
            "tokens": pa.array([TOKENS] * sentences),
            "bin_sums": list_column(sums_SMB.astype(np.float32).reshape(sentences, -1)),
        }
        tables.append(sentence_table(sentences, signature | {"kind": "teacher-forced", "temperature": t}, columns))
        total = sums_SMB.sum(0)
        add("nll", nll_S.sum() / (TOKENS * sentences), temperature=t, bins=15)
        add("ece", float(ece_from_sums(total)), temperature=t, bins=15)
        add("squared_l2", float(unbiased_squared_l2_from_sums(total)), temperature=t, bins=15)
        if t == 1.0:
            score = {"temperature": 1.0, "temperature_is": "given", "beam": 5, "length_penalty": "average:1"}
            binned = calibration_from_sums(total)
            figures = {
                "ece": float(ece_from_sums(total)), "debiased_ece": float(debiased_l1_from_sums(total)),
                "over_confidence": binned.over_confidence, "under_confidence": binned.under_confidence,
            }  # fmt: skip
            for name, value in {**figures, **translator.scored}.items():
                kind, *parts = name.split(" ")
                part = {"estimator": parts[0], "sample_tokens": int(parts[1])} if parts else {}
                fresh = {"split": "fresh"} if parts or "exact" in name or "truth" in name else {}
                if not fresh or split == "test":
                    add(kind, value + 1e-6 * rng.normal(), **score, **part, **fresh)
        if t == fitted:
            add("ece", float(ece_from_sums(total)), temperature=t, temperature_is="fitted")
    ledger.add(f"{stem}-teacher-forced", pa.concat_tables(tables), [])
    for t in DECODED:
        matches_S4 = np.stack([(draws_SN[:, order:] < translator.precision(t) + shift).sum(1) for order in range(4)], 1)
        possible_S4 = np.broadcast_to(TOKENS - np.arange(4), (sentences, 4))
        lengths_S2 = np.full((sentences, 2), TOKENS)
        statistics = np.concatenate([lengths_S2, matches_S4, possible_S4], 1).astype(np.int32)
        keys = {"beam": 5, "length_penalty": "average:1", "temperature": t}
        ledger.add(
            f"{stem}-T{t:g}",
            sentence_table(
                sentences, signature | keys | {"kind": "decoded"}, {"bleu_statistics": list_column(statistics)}
            ),
            [],
        )
        add("bleu", float(bleu_from_statistics(statistics.sum(0))), **keys, sacrebleu="nrefs:1|made:up")
    append_records(folder / "records.jsonl", records)
