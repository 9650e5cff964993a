"""What a training run shows while it runs: a bar on a terminal, plain lines elsewhere, TensorBoard on request."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from nmt_ls.experiment.command_line import UserError


class Progress:
    """Shows updates `start` to `total`: `advance` after each, `figures` at the log interval, `say` for whole lines."""

    def __init__(self, start: int, total: int, unit: str, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._start, self._total, self._unit = start, total, unit
        self._began = time.perf_counter()
        self._bar: tqdm[Any] | None = None
        if self._stream.isatty():
            self._bar = tqdm(
                initial=start, total=total, unit="update", file=self._stream, dynamic_ncols=True, smoothing=0.05
            )

    def advance(self) -> None:
        """One more update is done."""
        if self._bar is not None:
            self._bar.update()

    def figures(self, line: Mapping[str, Any]) -> None:
        """Show a training line of metrics.jsonl."""
        shown = {key: value for key, value in line.items() if key not in ("split", "step", "elapsed", "rate")}
        rate = f"{line['rate']:,.0f} {self._unit}/s"
        if self._bar is not None:
            self._bar.set_postfix_str(f"{_columns(shown, ', ')}, {rate}", refresh=False)
            return
        done = line["step"] - self._start
        left = (time.perf_counter() - self._began) / max(done, 1) * (self._total - line["step"])
        self.say(f"update {line['step']}/{self._total}  {_columns(shown, '  ')}  {rate}  {_clock(left)} left")

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


class TensorBoard:
    """Writes the numbers of metrics lines as scalars split/name; hides what a killed session wrote after `step`."""

    def __init__(self, directory: Path, step: int) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter  # imported on request: it takes a second

        self._writer: Any = SummaryWriter(str(directory), purge_step=step + 1)

    def write(self, line: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl."""
        for name, value in line.items():
            if name not in ("split", "step") and isinstance(value, int | float):
                self._writer.add_scalar(f"{line['split']}/{name}", value, line["step"])

    def close(self) -> None:
        """Flush."""
        self._writer.close()


def require_tensorboard() -> None:
    """UserError where tensorboard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError("engine.tensorboard: tensorboard is not installed; pip install 'nmt-ls[track]' or leave it off")


def describe(figures: Mapping[str, Any]) -> str:
    """Figures on one line, four significant digits each."""
    return _columns(figures, "  ")


def _columns(figures: Mapping[str, Any], separator: str) -> str:
    return separator.join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items()
    )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Without the progress bars of `datasets`, which it draws into log files too."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
