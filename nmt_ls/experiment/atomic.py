"""Files that are on the disk whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """Write a whole file or nothing: to a temporary name beside it, fsynced, renamed. Text is stored as UTF-8."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        temporary.write_bytes(data)
        fsync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Have a file, or the names in a directory, on the disk itself. Not every file system can do it for directories."""
    with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
