"""Bring your own probabilities: the calibration report of what any toolkit predicted, token by token.

A JSON-lines file, UTF-8, plain or gzip (told by its content), holds either one token a line

    {"sentence": 0, "position": 3, "confidence": 0.93, "correct": true, "log_prob": -0.07}

or one sentence a line, with lists of one length:

    {"sentence": 0, "confidence": [0.93, 0.41], "correct": [true, false], "log_prob": [-0.07, -1.9]}

sentence: a whole number or text that names the sentence. position: of the token in it, from 0; of a sentence's lists
their order, if left out. confidence: the probability of the token that was predicted, the most probable one. correct:
whether it is the right one (true or false, 1 or 0). log_prob: natural logarithm of the probability of the right token;
optional, but then for all tokens. So it is ln(confidence) of a correct token, and of a wrong one at most
ln(min(confidence, 1 - confidence)), up to rounding. Pads do not belong in it; whether end-of-sentence does is the
writer's choice. A sentence without tokens does not count.

Shapes: N tokens.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import sys
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nmt_ls.experiment.command_line import UserError
from nmt_ls.experiment.records import Signature, provenance
from nmt_ls.lines import standard_input
from nmt_ls.metrics.calibration import CalibrationAccumulator
from nmt_ls.metrics.calibrators import IsotonicCalibration
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
_ROUNDING = 0.011
"""How far a log_prob may be from its confidence, as probabilities: each may have been printed with two decimals."""
_GZIP_MAGIC = b"\x1f\x8b"
_COLUMNS = {"sentence": "q", "position": "q", "confidence": "d", "correct": "b", "log_prob": "d", "line": "q"}


@dataclass(frozen=True, kw_only=True)
class TokenRecords:
    """N tokens, in the order of the file. sentences are numbered from 0 as they appear.

    name: of the file (stdin for standard input). sha256: of what it holds, unpacked.
    """

    name: str
    sha256: str
    sentences: NDArray[np.int64]
    positions: NDArray[np.int64]
    confidences: FloatArray
    correct: NDArray[np.bool_]
    log_probs: FloatArray | None

    @property
    def stem(self) -> str:
        """The name without its endings, for the names of diagrams."""
        return Path(self.name.removesuffix(".gz")).stem


def read_token_records(path: str | Path, key: str = "records") -> TokenRecords:
    """Read and check a file of the format above; - is standard input. It takes some 50 bytes a token.

    key: the setting that names the file. Raises UserError naming file, line and key of the first fault, and what to do
    about it; a token that is given twice is found last.
    """
    source, digest = str(path), hashlib.sha256()
    numbers: dict[int | str, int] = {}
    columns: dict[str, array[Any]] = {name: array(code) for name, code in _COLUMNS.items()}
    for line, entry in _entries(source, key, digest.update):
        where = _place(source, line)
        tokens = _tokens(entry, where)
        count = len(tokens["confidence"])
        if not count:
            continue
        if numbers and bool(columns["log_prob"]) != ("log_prob" in tokens):
            _refuse(where, "log_prob", "given in some lines only; give it for all tokens or for none", advice="")
        number = numbers.setdefault(entry["sentence"], len(numbers))
        for name, values in {**tokens, "sentence": [number] * count, "line": [line] * count}.items():
            columns[name].extend(values)
    if not numbers:
        raise UserError(f"{source}: holds no tokens; write one token or one sentence a line")
    found = {name: np.frombuffer(values, dtype=values.typecode) for name, values in columns.items() if values}
    _check_given_once(source, found, list(numbers))
    return TokenRecords(
        name="stdin" if source == "-" else Path(source).name,
        sha256=digest.hexdigest(),
        sentences=found["sentence"],
        positions=found["position"],
        confidences=found["confidence"],
        correct=found["correct"].view(bool),
        log_probs=np.minimum(found["log_prob"], 0.0) if "log_prob" in found else None,
    )


def _check_given_once(source: str, columns: Mapping[str, NDArray[Any]], names: Sequence[int | str]) -> None:
    """Raises UserError for the first token that has the sentence and the position of an earlier one."""
    sentences, positions = columns["sentence"], columns["position"]
    order = np.lexsort((positions, sentences))  # stable: of equal ones the earlier is before the later
    later = order[1:][(np.diff(sentences[order]) == 0) & (np.diff(positions[order]) == 0)]
    if not len(later):
        return
    second = later.min()
    first = np.argmax((sentences == sentences[second]) & (positions == positions[second]))
    name, before = _short(names[sentences[second]]), columns["line"][first]
    fault = f"sentence {name} has a token at {positions[second]} already, in line {before}"
    _refuse(_place(source, columns["line"][second]), "position", fault, advice="give each token once")


def _place(source: str, line: int) -> str:
    return f"standard input, line {line}" if source == "-" else f"{source}:{line}"


@contextmanager
def _opened(source: str, key: str) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """The file, or standard input, unpacked. Raises UserError where there is none."""
    if source != "-" and (not Path(source).exists() or Path(source).is_dir()):
        raise UserError(f"{key}: {source} is no file; name a JSON-lines file of token probabilities")
    with standard_input(key) if source == "-" else Path(source).open("rb") as raw:
        if raw.peek(len(_GZIP_MAGIC)).startswith(_GZIP_MAGIC):
            with gzip.open(raw) as unpacked:
                yield unpacked
        else:
            yield raw


def _entries(source: str, key: str, watch: Callable[[bytes], object]) -> Iterator[tuple[int, Any]]:
    """Number of the line, and what it says, of every line that is not blank. watch is given every line."""
    number = 0
    try:
        with _opened(source, key) as file:
            for number, raw in enumerate(file, start=1):
                watch(raw)
                if raw.strip():
                    yield number, _parsed(raw, _place(source, number))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{_place(source, number + 1)}: damaged gzip file ({error}); pack it again") from None


def _parsed(raw: bytes, where: str) -> Any:
    try:
        return json.loads(raw, object_pairs_hook=_object)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except (ValueError, RecursionError) as error:
        fault = str(error) if raw.lstrip()[:1] == b"{" else "a line is one JSON object"
        raise UserError(f"{where}: not JSON ({fault}); write one object a line") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key that it has twice, of which Python would take the last, is refused."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(f"{_short(twice)}: given twice in one object; keep one of them")
    return entry


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
        tokens = {key: [_checked(key, value, where, key)] for key, value in given.items()}
        _check_log_probs(tokens, where, "log_prob")
        return tokens
    count = len(entry["confidence"])
    given.setdefault("position", list(range(count)))
    for key, values in given.items():
        if not isinstance(values, list):
            _refuse(where, key, f"{_short(values)} is no list, but confidence is", advice="give a list of one length")
        if len(values) != count:
            _refuse(where, key, f"{len(values)} values, but confidence has {count}", advice="give lists of one length")
    tokens = {
        key: [_checked(key, value, where, f"{key}[{index}]") for index, value in enumerate(values)]
        for key, values in given.items()
    }
    _check_log_probs(tokens, where, "log_prob[{}]")
    return tokens


def _check_log_probs(tokens: Mapping[str, list[Any]], where: str, place: str) -> None:
    """Raises UserError unless each log_prob is one that the right token can have beside the confidence."""
    triples = zip(tokens["confidence"], tokens["correct"], tokens.get("log_prob", []), strict=False)
    for index, (confidence, correct, log_prob) in enumerate(triples):
        most = confidence if correct else min(confidence, 1 - confidence)
        excess = math.exp(log_prob) - most
        if excess <= _ROUNDING and (not correct or excess >= -_ROUNDING):
            continue
        limit = "ln(confidence)" if correct else "at most ln(min(confidence, 1 - confidence))"
        limit += f" = {math.log(most) if most else -math.inf:.4g}"
        fault = f"got {log_prob:.4g}, but of a {'correct' if correct else 'wrong'} token it is {limit}"
        causes = (
            "is it log2 or log10, at another temperature, of another label, or is the prediction not the most probable?"
        )
        _refuse(where, place.format(index), fault, advice=causes)


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
    return bool(value) if key == "correct" else value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "…"


def _refuse(where: str, key: str, fault: str, advice: str | None = None) -> NoReturn:
    advice = _ADVICE.get(key, "") if advice is None else advice
    raise UserError(f"{where}: {key}: {fault}" + (f"; {advice}" if advice else ""))


def calibrated(tokens: TokenRecords, fitted: TokenRecords, same_split: bool = False) -> TokenRecords:
    """The tokens with other confidences: isotonic regression of correctness on confidence, fitted to other tokens.

    Without log_probs: what a wrong token's confidence becomes says nothing of the right token's probability. Raises
    UserError where both hold the same tokens, unless same_split says that this is meant; then it warns.
    """
    if same_tokens(tokens, fitted):
        if not same_split:
            raise UserError(
                f"fit_on: {fitted.name} holds the same tokens as {tokens.name}, and figures are flattered where the "
                "calibrator was fitted; name another file, or say that it is meant with --same_split true"
            )
        print(
            "warning: the calibrator is fitted on the tokens that it is reported on, which flatters it", file=sys.stderr
        )
    calibrator = IsotonicCalibration.fit(fitted.confidences, fitted.correct, split=fitted.sha256)
    confidences = calibrator.apply(tokens.confidences, split=tokens.sha256, same_split=same_split)
    return replace(tokens, confidences=confidences, log_probs=None)


def same_tokens(one: TokenRecords, other: TokenRecords) -> bool:
    """Whether both hold the same predictions in the same order, however they are written."""
    return np.array_equal(one.confidences, other.confidences) and np.array_equal(one.correct, other.correct)


def calibrator_recipe(tokens: TokenRecords, fitted: TokenRecords) -> dict[str, Any]:
    """What belongs to the signature of calibrated figures besides `record_recipe`."""
    recipe = {"calibrator": "isotonic", "fitted_on": fitted.name, "fitted_on_sha256": fitted.sha256}
    return {**recipe, **({"same_split": True} if same_tokens(tokens, fitted) else {})}


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
    """Where a sentence ends, only its right tokens say: slices by its end or length have no floor and no p-value."""
    last = np.zeros(int(tokens.sentences.max()) + 1, dtype=np.int64)
    np.maximum.at(last, tokens.sentences, tokens.positions)
    ends = (tokens.positions == last[tokens.sentences]).astype(np.intp)
    kinds = {
        "position": bucket(tokens.positions + 1, POSITION_EDGES),
        "end": (ends, ["earlier tokens", "last token"]),
        "length": bucket(np.bincount(tokens.sentences)[tokens.sentences], LENGTH_EDGES),
    }
    return calibration_apart(tokens.confidences, tokens.correct, kinds, by_outcome=("end", "length"))


def record_recipe(tokens: TokenRecords) -> dict[str, Any]:
    """The signature of these figures: the file by name and checksum, and what computed them."""
    extras = {"records": tokens.name, "records_sha256": tokens.sha256}
    return Signature.of(provenance(), bins=BINS, extras=extras).to_dict()


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
