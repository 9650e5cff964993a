"""Which tokens of a translation are right? Those that TER aligns with an equal token of the reference.

Inference calibration (Wang et al. 2020) asks how sure a model is of the tokens that it wrote itself, and
takes this for their correctness. TER (Snover et al. 2006) is the fewest insertions, deletions, substitutions and
shifts of a block of tokens that turn the hypothesis into the reference. The best sequence of shifts is hard to find,
so it is built greedily: of all shifts of a block to where the reference has the same tokens, the one that lowers the
edit distance most, until none lowers it (a shift that only earns its own cost of 1 may open the way to a better one).

Shapes: C candidate shifts, H tokens of the hypothesis, R tokens of the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_LONGEST_SHIFT = 10  # tokens in a block, and how far it may move: the limits of the tercom program
_FARTHEST_SHIFT = 50
_EDIT = 1 << 20  # the cost of an edit; a match costs -1, so that of equally many edits most matches win


@dataclass(frozen=True, kw_only=True)
class TerAlignment:
    """The hypothesis against its reference."""

    correct: list[bool]  # for every hypothesis token, in its original order
    edits: int  # insertions, deletions, substitutions and shifts
    shifts: int


def ter_alignment(hypothesis: Sequence[str], reference: Sequence[str]) -> TerAlignment:
    """Align tokens (words or pieces, as given) of one hypothesis with one reference.

    With several references call it for each and keep the one of fewest edits.
    """
    numbers: dict[str, int] = {}
    words_H, words_R = (
        np.array([numbers.setdefault(word, len(numbers)) for word in line], dtype=np.int64)
        for line in (hypothesis, reference)
    )
    order_H = np.arange(len(words_H))  # where each token of the shifted hypothesis stood at first
    shifts = 0
    now = _align(words_H, words_R)
    while now.edits > 1:
        orders_CH = _shifted_orders(words_H, words_R, now)
        if not len(orders_CH):
            break
        best_H = orders_CH[int(_costs(words_H[orders_CH], words_R).argmin())]
        following = _align(words_H[best_H], words_R)
        if following.edits >= now.edits:
            break
        words_H, order_H, now = words_H[best_H], order_H[best_H], following
        shifts += 1
    correct_H = np.zeros(len(words_H), bool)
    correct_H[order_H] = now.matched_H
    return TerAlignment(correct=correct_H.tolist(), edits=now.edits + shifts, shifts=shifts)


def _costs(words_CH: Ints, words_R: Ints) -> Ints:
    """Cost of aligning every candidate with the reference, [C]; one row of the table at a time for all of them."""
    columns = np.arange(len(words_R) + 1) * _EDIT
    row_CR = np.broadcast_to(columns, (len(words_CH), len(columns))).copy()
    for i in range(words_CH.shape[1]):
        row_CR = _next_row(row_CR, words_CH[:, i, None] == words_R, columns)
    return row_CR[:, -1]


def _next_row(row_CR: Ints, same_CR: NDArray[np.bool_], columns: Ints) -> Ints:
    following = row_CR + _EDIT
    np.minimum(following[:, 1:], row_CR[:, :-1] + np.where(same_CR, -1, _EDIT), out=following[:, 1:])
    # a step along the row costs one edit: a running minimum once each column's own cost is taken off
    return np.asarray(np.minimum.accumulate(following - columns, axis=1) + columns)


@dataclass(frozen=True, kw_only=True)
class _Alignment:
    edits: int
    matched_H: NDArray[np.bool_]
    matched_R: NDArray[np.bool_]
    before_R: Ints  # places in the hypothesis, 0 to H, where each reference token begins and ends
    after_R: Ints


def _align(words_H: Ints, words_R: Ints) -> _Alignment:
    """The cheapest alignment: fewest edits, and of those most matches."""
    columns = np.arange(len(words_R) + 1) * _EDIT
    rows = [columns[None].copy()]
    for word in words_H:
        rows.append(_next_row(rows[-1], (word == words_R)[None], columns))
    table = np.concatenate(rows).tolist()
    matched_H, matched_R = np.zeros(len(words_H), bool), np.zeros(len(words_R), bool)
    before_R, after_R = np.zeros((2, len(words_R)), dtype=np.int64)
    i, j = len(words_H), len(words_R)
    while i or j:
        same = bool(i and j and words_H[i - 1] == words_R[j - 1])
        end = i
        if i and j and table[i][j] == table[i - 1][j - 1] + (-1 if same else _EDIT):
            i, j = i - 1, j - 1
            matched_H[i] = matched_R[j] = same
        elif i and table[i][j] == table[i - 1][j] + _EDIT:
            i -= 1
            continue
        else:
            j -= 1
        before_R[j], after_R[j] = i, end
    edits = -(-table[-1][-1] // _EDIT)
    return _Alignment(edits=edits, matched_H=matched_H, matched_R=matched_R, before_R=before_R, after_R=after_R)


def _shifted_orders(words_H: Ints, words_R: Ints, now: _Alignment) -> Ints:
    """The orders of the hypothesis after each sensible shift, [C, H].

    A block moves to where the reference has the same tokens, if some of it is wrong now where it stands and some of
    the reference there is not matched yet.
    """
    size = len(words_H)
    moves: set[tuple[int, int, int]] = set()
    for start, target in np.argwhere(words_H[:, None] == words_R[None]).tolist():
        places = {int(now.before_R[target]), int(now.after_R[target - 1]) if target else 0}
        for length in range(1, _LONGEST_SHIFT + 1):
            end, last = start + length, target + length - 1
            if end > size or last >= len(words_R) or words_H[end - 1] != words_R[last]:
                break
            places.add(int(now.after_R[last]))
            if now.matched_H[start:end].all() or now.matched_R[target : last + 1].all():
                continue
            # between its own ends the block stands already
            moves |= {
                (start, end, place)
                for place in places
                if not start <= place <= end and abs(place - start) <= _FARTHEST_SHIFT
            }
    return np.array([_moved(size, *move) for move in sorted(moves)], dtype=np.int64).reshape(-1, size)


def _moved(size: int, start: int, end: int, place: int) -> list[int]:
    block, rest = list(range(start, end)), [*range(start), *range(end, size)]
    cut = place if place < start else place - (end - start)
    return [*rest[:cut], *block, *rest[cut:]]
