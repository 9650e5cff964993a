"""Lines in, translations out: files, standard input as it comes, and what is written of each translation."""

from __future__ import annotations

import io
import json
import os
import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from nmt_ls.experiment.atomic import fsync
from nmt_ls.experiment.command_line import UserError
from nmt_ls.staged_texts import text_fault
from nmt_ls.translator import Hypothesis

PORTION = 2000
"""Lines that are read, translated and written at a time."""


def read_lines(path: str) -> list[str]:
    """The lines of a UTF-8 file. Raises UserError naming file and line where they are no text, or there is no file."""
    if not Path(path).is_file():
        raise UserError(f"{path}: there is no such file")
    raw_lines = Path(path).read_bytes().split(b"\n")
    if not raw_lines[-1]:
        raw_lines.pop()
    return [_line_of(raw, number, f"{path}:{number}") for number, raw in enumerate(raw_lines, start=1)]


def _line_of(raw: bytes, number: int, where: str) -> str:
    """A line as text, without its end, and without the byte order mark that the first may have."""
    try:
        text = raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        byte = f"byte {raw[error.start]:#04x} at {error.start + 1}"
        raise UserError(f"{where}: not valid UTF-8 ({byte}); convert the text") from None
    fault = text_fault(text)
    if fault:
        raise UserError(f"{where}: {fault}; mend the line")
    return text.removeprefix("\ufeff") if number == 1 else text


def read_references(paths: Sequence[str]) -> list[list[str]]:
    """The lines of each file of references."""
    return [read_lines(path) for path in paths]


def check_count(path: str, lines: Sequence[str], expected: int, other: str = "the input") -> None:
    """Raises UserError unless the file at path, which pairs up with another, has as many lines."""
    if len(lines) != expected:
        raise UserError(f"{path}: has {len(lines)} lines, but {other} has {expected}; they must pair up, line by line")


def standard_input(key: str = "input") -> io.BufferedReader:
    """Standard input as bytes, whatever the locale. Raises UserError, naming the setting, where it is closed.

    A reader of its own: a thread that waits on sys.stdin's would abort the interpreter on its way out.
    """
    if sys.stdin is None:
        raise UserError(f"{key}: - is standard input, which is closed; pipe lines into the command, or name a file")
    return open(sys.stdin.fileno(), "rb", closefd=False)


def portions_of(stream: BinaryIO) -> Iterator[list[str]]:
    """Lines of a stream as they come: whatever has arrived while the last portion was being translated is the next.

    So somebody who types gets an answer to each line at once, and a long pipe is translated in large batches.
    Raises UserError naming the line that is no text, once the lines before it were taken.
    """
    arrived: queue.Queue[str | UserError | None] = queue.Queue(maxsize=PORTION)

    def read() -> None:
        try:
            for number, raw in enumerate(stream, start=1):
                arrived.put(_line_of(raw, number, f"standard input, line {number}"))
        except UserError as error:
            arrived.put(error)
        except OSError as error:
            arrived.put(UserError(f"standard input: {error.strerror or error}"))
        arrived.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        portion: list[str] = []
        item = arrived.get()
        while isinstance(item, str):
            portion.append(item)
            if len(portion) == PORTION or arrived.empty():
                break
            item = arrived.get()
        if portion:
            yield portion
        if item is None:
            return
        if isinstance(item, UserError):
            raise item


class Writer:
    """Writes translations: text to one stream, and on request everything known of them to a JSON-lines file."""

    def __init__(self, output: str | None, json_output: str | None, nbest: int, stack: ExitStack) -> None:
        """output: a file, or None for standard output; json_output: a file or None; nbest: translations a line.

        Files appear under their names when stack is left, unless an exception leaves it. Raises UserError where one
        cannot be written.
        """
        self._text = _standard_output() if output is None else stack.enter_context(_create("output", output))
        self._json = None if json_output is None else stack.enter_context(_create("json", json_output))
        self._nbest = nbest
        self._line = 0

    def write(self, sources: Sequence[str], translations: Sequence[Sequence[Hypothesis]]) -> None:
        """Text: a line a source; of several translations, lines of number, score and text, tab-separated."""
        for source, best in zip(sources, translations, strict=True):
            if self._nbest == 1:
                print(best[0].text if best else "", file=self._text)
            else:
                for hypothesis in best:
                    print(f"{self._line + 1}\t{hypothesis.score:.4f}\t{hypothesis.text}", file=self._text)
            if self._json is not None:
                entry = {"line": self._line + 1, "source": source, "translations": [as_json(one) for one in best]}
                print(json.dumps(entry, ensure_ascii=False), file=self._json)
            self._line += 1
        self._text.flush()


def as_json(hypothesis: Hypothesis) -> dict[str, object]:
    """Everything known of a translation. `tokens` ends with the end-of-sentence, named </s>."""
    tokens: list[dict[str, object]] = [
        {"piece": piece, "log_prob": log_prob}
        for piece, log_prob in zip([*hypothesis.pieces, "</s>"], hypothesis.token_log_probs, strict=False)
    ]
    for token, row in zip(tokens, hypothesis.alternatives or [], strict=False):
        token["alternatives"] = [{"piece": piece, "log_prob": log_prob} for piece, log_prob in row]
    return {
        "text": hypothesis.text,
        "score": hypothesis.score,
        "log_prob": hypothesis.log_prob,
        "tokens": tokens,
        "words": [{"word": word, "confidence": confidence} for word, confidence in hypothesis.word_confidences()],
    }


def _standard_output() -> TextIO:
    """Standard output, in UTF-8 whatever the locale."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    return sys.stdout


@contextmanager
def _create(key: str, path: str) -> Iterator[TextIO]:
    """A file that appears under its name only once it is complete; a device such as /dev/null is written into.

    Raises UserError naming the setting and the path where it cannot be written.
    """
    final = Path(path)
    if final.is_dir():
        raise UserError(f"{key}: {path} is a directory; name a file in it")
    if not final.parent.is_dir():
        raise UserError(f"{key}: {path} cannot be written, for there is no directory {final.parent}; make it first")
    special = final.exists() and not final.is_file()
    partial = final if special else final.with_name(f"{final.name}.{os.getpid()}.partial")
    try:
        file = partial.open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be written ({error.strerror}); name another place") from None
    if special:
        with file:
            yield file
        return
    try:
        with file:
            yield file
        fsync(partial)
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)
