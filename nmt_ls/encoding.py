"""Texts on disk -> token ids on disk, by as many processes as pay.

The processes share no queue and no lock, only a counter each: whatever ends one of them, at whatever moment, the others
and their parent can be ended too. (The pool of `datasets` hangs when a signal hits a worker that holds a lock.)
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping, MutableSequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nmt_ls.experiment.progress import without_bars
from nmt_ls.vocabulary import load_vocabularies

# below this many pairs a second process costs more than it saves
PAIRS_PER_WORKER = 50_000
POLL_SECONDS = 0.2


def encode_texts(path: Path, directory: Path, workers: int) -> Any:
    """A data set with the columns of the Arrow file at path (source, references) and source_ids and target_ids.

    Target ids are those of the first reference; the vocabularies lie in directory. Files are written beside path.

    Args:
        workers: number of processes, 0 to choose.
    """
    import datasets  # not at the top: it takes longer to import than everything else here

    rows = len(datasets.Dataset.from_file(str(path)))
    workers = workers or min(len(os.sched_getaffinity(0)), rows // PAIRS_PER_WORKER)
    workers = max(1, min(workers, rows))
    parts = [range(rows * part // workers, rows * (part + 1) // workers) for part in range(workers)]
    files = [path.with_name(f"{path.name}.{part}.encoded") for part in range(workers)]
    with tqdm(total=rows, desc=f"encoding {path.name}", unit=" pairs", disable=None) as bar:
        if workers == 1:
            _encode_part(path, directory, parts[0], files[0], bar.update)
        else:
            _encode_in_processes(path, directory, parts, files, bar)
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files])


def _encode_part(path: Path, directory: Path, rows: range, file: Path, advance: Callable[[int], object]) -> None:
    """Encode some rows into a file of their own."""
    import datasets

    source, target = load_vocabularies(directory)

    def encode(texts: Mapping[str, Any]) -> dict[str, list[list[int]]]:
        advance(len(texts["source"]))
        return {
            "source_ids": source.encode_all(texts["source"]),
            "target_ids": target.encode_all([references[0] for references in texts["references"]]),
        }

    texts = datasets.Dataset.from_file(str(path)).select(rows)
    ids = datasets.Sequence(datasets.Value("int32"))
    with without_bars():
        texts.map(
            encode,
            batched=True,
            features=datasets.Features({**texts.features, "source_ids": ids, "target_ids": ids}),
            cache_file_name=str(file),
            new_fingerprint=file.name,  # or it would hash the vocabularies
        )


def _encode_in_processes(path: Path, directory: Path, parts: list[range], files: list[Path], bar: Any) -> None:
    fork = multiprocessing.get_context("fork")
    done = fork.RawArray("q", len(parts))
    workers = [
        fork.Process(target=_work, args=(path, directory, rows, file, done, part), daemon=True)
        for part, (rows, file) in enumerate(zip(parts, files, strict=True))
    ]
    try:
        for worker in workers:
            worker.start()
        while running := [worker.sentinel for worker in workers if worker.is_alive()]:
            wait(running, timeout=POLL_SECONDS)
            bar.update(sum(done) - bar.n)
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.kill()
                worker.join()
    if any(worker.exitcode for worker in workers):
        raise RuntimeError("a worker that encoded texts came to grief (its own message stands above)")


def _work(path: Path, directory: Path, rows: range, file: Path, done: MutableSequence[int], part: int) -> None:
    def advance(count: int) -> None:
        done[part] += count

    _encode_part(path, directory, rows, file, advance)
