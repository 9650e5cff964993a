"""Lines in, translations out: files, standard input as it comes, and what is written of each translation."""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from nmt_ls.experiment.command_line import UserError
from nmt_ls.translator import Hypothesis

PORTION = 2000
"""Lines that are read, translated and written at a time."""


def read_lines(path: str) -> list[str]:
    """The lines of a UTF-8 file. Raises UserError naming file and line where it is not UTF-8."""
    if not Path(path).is_file():
        raise UserError(f"{path}: there is no such file")
    lines = []
    for number, raw in enumerate(Path(path).read_bytes().split(b"\n"), start=1):
        try:
            lines.append(raw.decode("utf-8").removesuffix("\r"))
        except UnicodeDecodeError:
            raise UserError(f"{path}:{number}: not valid UTF-8; convert the file") from None
    return lines[:-1] if lines and lines[-1] == "" else lines


def read_references(paths: Sequence[str], lines: int) -> list[list[str]] | None:
    """The references of each line, one from each file. Raises UserError where a file has another number of lines."""
    columns = [read_lines(path) for path in paths]
    for path, column in zip(paths, columns, strict=True):
        if len(column) != lines:
            raise UserError(
                f"{path}: has {len(column)} lines, but the input has {lines}; references must pair up with it"
            )
    return [list(row) for row in zip(*columns, strict=True)] if columns else None


def portions_of(stream: TextIO) -> Iterator[list[str]]:
    """Lines of a stream as they come: whatever has arrived while the last portion was being translated is the next.

    So somebody who types gets an answer to each line at once, and a long pipe is translated in large batches.
    """
    arrived: queue.Queue[str | UnicodeDecodeError | None] = queue.Queue(maxsize=PORTION)

    def read() -> None:
        try:
            for line in stream:
                arrived.put(line.rstrip("\r\n"))
        except UnicodeDecodeError as error:
            arrived.put(error)
        arrived.put(None)

    threading.Thread(target=read, daemon=True).start()
    number = 0
    while True:
        portion: list[str] = []
        item = arrived.get()
        while isinstance(item, str):
            portion.append(item)
            if len(portion) == PORTION or arrived.empty():
                break
            item = arrived.get()
        number += len(portion)
        if portion:
            yield portion
        if item is None:
            return
        if isinstance(item, UnicodeDecodeError):
            raise UserError(f"standard input, after line {number}: not valid UTF-8; convert it")


class Writer:
    """Writes translations: text to one stream, and on request everything known of them to a JSON-lines file."""

    def __init__(self, output: str | None, json_output: str | None, nbest: int, stack: ExitStack) -> None:
        """output: a file, or None for standard output; json_output: a file or None; nbest: translations a line."""
        self._text = sys.stdout if output is None else stack.enter_context(_create(output))
        self._json = None if json_output is None else stack.enter_context(_create(json_output))
        self._nbest = nbest
        self._line = 0

    def write(self, sources: Sequence[str], translations: Sequence[Sequence[Hypothesis]]) -> None:
        """Text: a line a source; of several translations, lines of number, score and text, tab-separated."""
        for source, best in zip(sources, translations, strict=True):
            for hypothesis in best:
                if self._nbest == 1:
                    print(hypothesis.text, file=self._text)
                else:
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


@contextmanager
def _create(path: str) -> Iterator[TextIO]:
    """A file that appears under its name only once it is complete."""
    final, partial = Path(path), Path(f"{path}.partial")
    with partial.open("w", encoding="utf-8") as file:
        yield file
    partial.replace(final)
