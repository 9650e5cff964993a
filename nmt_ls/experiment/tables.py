"""Plain-text tables for terminals."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def format_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | Mapping[str, str]) -> str:
    """Aligned columns under a ruled heading, without a final newline: numbers to the right, text to the left.

    Args:
        rows: values by column; what is missing or None is left blank.
        columns: the columns in their order; a mapping gives each the format of its numbers, such as ".2f"
            (otherwise, and where it is empty, floats have four significant digits).
    """
    formats = dict(columns) if isinstance(columns, Mapping) else dict.fromkeys(columns, "")
    rows = list(rows)
    heading = [str(name) for name in formats]
    cells = [[_cell(row.get(name), spec) for name, spec in formats.items()] for row in rows]
    right = [all(not isinstance(row.get(name), str) for row in rows) and bool(rows) for name in formats]
    widths = [max(map(len, column)) for column in zip(heading, *cells, strict=True)]
    lines = [heading, ["-" * width for width in widths], *cells]
    return "\n".join("  ".join(map(_align, line, widths, right)).rstrip() for line in lines)


def _cell(value: Any, spec: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | str) or not isinstance(value, numbers.Real):
        return str(value)
    return format(value, spec or ("" if isinstance(value, numbers.Integral) else ".4g"))


def _align(text: str, width: int, right: bool) -> str:
    return text.rjust(width) if right else text.ljust(width)
