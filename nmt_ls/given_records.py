"""Bring your own probabilities: the calibration report of what any toolkit predicted, token by token.

A JSON-lines file, UTF-8, holds either one token a line

    {"sentence": 0, "position": 3, "confidence": 0.93, "correct": true, "log_prob": -0.07}

or one sentence a line, with lists of one length:

    {"sentence": 0, "confidence": [0.93, 0.41], "correct": [true, false], "log_prob": [-0.07, -1.9]}

sentence: a whole number or text that names the sentence. position: of the token in it, from 0; of a sentence's lists
their order, if left out. confidence: the probability of the token that was predicted. correct: whether it is the right
one (true or false, 1 or 0). log_prob: natural logarithm of the probability of the right token; optional, but then for
all tokens. Pads do not belong in it; whether end-of-sentence does is the writer's choice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.records import Signature, provenance
from nmt_ls.metrics.calibration import CalibrationAccumulator
from nmt_ls.metrics.figures import calibration_figures
from nmt_ls.metrics.inputs import FloatArray
from nmt_ls.metrics.likelihood import perplexity
from nmt_ls.metrics.null import null_distribution
from nmt_ls.metrics.plots import reliability_diagram, risk_coverage_figure
from nmt_ls.metrics.selective import risk_coverage
from nmt_ls.metrics.slices import bucket
from nmt_ls.score_figures import LENGTH_EDGES, POSITION_EDGES, calibration_apart
from nmt_ls.score_records import Figures
from nmt_ls.scoring import BINS

KEYS = ("sentence", "position", "confidence", "correct", "log_prob")
_ADVICE = {
    "sentence": "name the sentence by a whole number or a text",
    "position": "give the token's place in its sentence, a whole number from 0",
    "confidence": "give the probability of the predicted token, from 0 to 1",
    "correct": "say true or false (or 1 or 0)",
    "log_prob": "give the natural logarithm of the right token's probability, at most 0",
}
_LARGEST_POSITION = 2**31


@dataclass(frozen=True, kw_only=True)
class TokenRecords:
    """N tokens, in the order of the file. sentences are numbered from 0 as they appear."""

    sentences: NDArray[np.int64]
    positions: NDArray[np.int64]
    confidences: FloatArray
    correct: NDArray[np.bool_]
    log_probs: FloatArray | None


def read_token_records(path: str | Path) -> TokenRecords:
    """Read and check a file of the format above.

    Raises UserError naming file, line and key of the first fault, and what to do about it.
    """
    numbers: dict[Any, int] = {}
    columns: dict[str, list[Any]] = {key: [] for key in KEYS}
    seen: dict[tuple[int, int], int] = {}
    has_log_prob: bool | None = None
    for where, line, entry in _entries(Path(path)):
        tokens = _tokens(entry, where)
        number = numbers.setdefault(entry["sentence"], len(numbers))
        if has_log_prob is None:
            has_log_prob = "log_prob" in tokens
        if has_log_prob != ("log_prob" in tokens):
            _refuse(where, "log_prob", "given in some lines only; give it for all tokens or for none", advice="")
        for position in tokens["position"]:
            if (number, position) in seen:
                before = seen[number, position]
                fault = f"sentence {_short(entry['sentence'])} has a token at {position} already, in line {before}"
                _refuse(where, "position", fault, advice="give each token once")
            seen[number, position] = line
        columns["sentence"] += [number] * len(tokens["position"])
        for key, values in tokens.items():
            columns[key] += values
    if not columns["confidence"]:
        raise UserError(f"{path}: holds no tokens; write one token or one sentence a line")
    return TokenRecords(
        sentences=np.array(columns["sentence"], dtype=np.int64),
        positions=np.array(columns["position"], dtype=np.int64),
        confidences=np.array(columns["confidence"], dtype=np.float64),
        correct=np.array(columns["correct"], dtype=bool),
        log_probs=np.minimum(np.array(columns["log_prob"], dtype=np.float64), 0.0) if has_log_prob else None,
    )


def _entries(path: Path) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """(file:line, number of the line, what it says) of every line that is not blank."""
    if not path.is_file():
        raise UserError(f"records: {path} is no file; name a JSON-lines file of token probabilities")
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.strip():
                try:
                    entry = json.loads(raw)
                except (ValueError, RecursionError) as error:
                    fault = str(error) if raw.lstrip()[:1] == b"{" else "a line is one JSON object"
                    raise UserError(f"{path}:{number}: not JSON ({fault}); write one object a line") from None
                yield f"{path}:{number}", number, entry


def _tokens(entry: Any, where: str) -> dict[str, list[Any]]:
    """The checked columns of a line, all of one length."""
    if not isinstance(entry, dict):
        raise UserError(f'{where}: not a JSON object; write {{"sentence": …, "confidence": …, …}}')
    for key in entry:
        if key not in KEYS:
            _refuse(where, key, "unknown key", advice=f"the keys are {', '.join(KEYS)}")
    whole = isinstance(entry.get("confidence"), list)
    for key in ("sentence", "confidence", "correct", *(() if whole else ("position",))):
        if key not in entry:
            _refuse(where, key, "missing")
    if not isinstance(entry["sentence"], int | str) or isinstance(entry["sentence"], bool):
        _refuse(where, "sentence", f"{_short(entry['sentence'])} names no sentence")
    given = {key: value for key, value in entry.items() if key != "sentence"}
    if not whole:
        return {key: [_checked(key, value, where, key)] for key, value in given.items()}
    count = len(entry["confidence"])
    given.setdefault("position", list(range(count)))
    for key, values in given.items():
        if not isinstance(values, list):
            _refuse(where, key, f"{_short(values)} is no list, but confidence is", advice="give a list of one length")
        if len(values) != count:
            _refuse(where, key, f"{len(values)} values, but confidence has {count}", advice="give lists of one length")
    return {
        key: [_checked(key, value, where, f"{key}[{index}]") for index, value in enumerate(values)]
        for key, values in given.items()
    }


def _checked(key: str, value: Any, where: str, place: str) -> Any:
    """A token's value. Raises UserError where it cannot be one."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if key == "correct":
        sound = isinstance(value, bool) or (number and value in (0, 1))
    elif key == "position":
        sound = number and isinstance(value, int) and 0 <= value < _LARGEST_POSITION
    elif key == "confidence":
        sound = number and 0 <= value <= 1
    else:
        sound = number and -1e308 <= value <= 1e-6  # rounding may leave a certain token a little above 0
    if not sound:
        _refuse(where, place, f"got {_short(value)}", advice=_ADVICE[key])
    return value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "…"


def _refuse(where: str, key: str, fault: str, advice: str | None = None) -> NoReturn:
    advice = _ADVICE.get(key, "") if advice is None else advice
    raise UserError(f"{where}: {key}: {fault}" + (f"; {advice}" if advice else ""))


def record_figures(tokens: TokenRecords) -> list[Figures]:
    """The calibration report: every figure of the tokens, and calibration apart by position, at the end, by length."""
    values: dict[str, float] = {
        "tokens": len(tokens.correct),
        "sentences": int(tokens.sentences.max()) + 1,
        **calibration_figures(tokens.confidences, tokens.correct, bins=BINS),
    }
    if tokens.log_probs is not None:
        nll = float(-tokens.log_probs.mean())
        values |= {"nll": nll, "perplexity": perplexity(nll)}
    return [Figures(values=values), *_slices(tokens)]


def _slices(tokens: TokenRecords) -> list[Figures]:
    last = np.zeros(int(tokens.sentences.max()) + 1, dtype=np.int64)
    np.maximum.at(last, tokens.sentences, tokens.positions)
    ends = (tokens.positions == last[tokens.sentences]).astype(np.intp)
    kinds = {
        "position": bucket(tokens.positions + 1, POSITION_EDGES),
        "end": (ends, ["earlier tokens", "last token"]),
        "length": bucket(np.bincount(tokens.sentences)[tokens.sentences], LENGTH_EDGES),
    }
    return calibration_apart(tokens.confidences, tokens.correct, kinds)


def record_recipe(path: Path) -> dict[str, Any]:
    """The signature of these figures: the file by name and checksum, and what computed them."""
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    signature = Signature.of(provenance(), bins=BINS, extras={"records": path.name, "records_sha256": checksum})
    return signature.to_dict()


def record_diagrams(tokens: TokenRecords, name: str) -> dict[str, Figure]:
    """Reliability, and risk against coverage, by the names of their files."""
    calibration = CalibrationAccumulator(BINS).update(tokens.confidences, tokens.correct).compute()
    band = null_distribution(tokens.confidences, BINS).accuracy_band()
    curve = risk_coverage(tokens.confidences, tokens.correct)
    return {
        f"reliability-{name}": reliability_diagram(
            {name: calibration}, band, f"{name}, {len(tokens.correct):,} tokens"
        ),
        f"risk-coverage-{name}": risk_coverage_figure({name: curve}),
    }
