"""What a command changes of the search that a run was configured with."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from nmt_ls.experiment.command_line import UserError
from nmt_ls.search import SearchConfig

# settings that are held against one another, so that one of them alone can be judged only beside the run's other
TOGETHER = (("beam", "nbest"), ("max_length_factor", "max_length_offset"))


@dataclass(frozen=True, kw_only=True)
class SearchChanges:
    """Changes of the run's own search, which its config.yaml holds: whatever is left out stays as it is there.

    beam: hypotheses kept a sentence; 1 is greedy search.
    nbest: translations returned a sentence, at most beam.
    length_penalty_kind: how scores of different lengths compare.
    length_penalty: its exponent.
    min_length: of the shortest translation, end-of-sentence counted.
    max_length_factor: the longest translation is this times the source's pieces, plus max_length_offset.
    max_length_offset: see max_length_factor.
    no_repeat_ngram: n-grams of this order occur once; 0 is off.
    stop: exact goes on until nothing unfinished can enter the n best; early stops at beam finished hypotheses.
    allow_unknown: whether the unknown symbol may be generated.
    alternatives: report this many most probable tokens at each position, with their log-probabilities.
    samples: draw this many translations instead of searching; 0 searches.
    top_k: draw from this many most probable tokens; 0 is all.
    top_p: draw from the smallest set of tokens with this probability.
    seed: of the draws.
    """

    beam: int | None = None
    nbest: int | None = None
    length_penalty_kind: Literal["gnmt", "average", "none"] | None = None
    length_penalty: float | None = None
    min_length: int | None = None
    max_length_factor: float | None = None
    max_length_offset: int | None = None
    no_repeat_ngram: int | None = None
    stop: Literal["exact", "early"] | None = None
    allow_unknown: bool | None = None
    alternatives: int | None = None
    samples: int | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        given = self.given()
        halves = {name for pair in TOGETHER if (pair[0] in given) != (pair[1] in given) for name in pair}
        SearchConfig(**{name: value for name, value in given.items() if name not in halves})
        for name in ("beam", "nbest"):
            if given.get(name, 1) < 1:
                raise ValueError(f"{name} must be at least 1, got {given[name]}")

    def given(self) -> dict[str, Any]:
        """What is to change, by name."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def applied_to(self, search: SearchConfig) -> SearchConfig:
        """The run's search with these changes. Raises UserError where the two do not go together."""
        try:
            return replace(search, **self.given())
        except ValueError as error:
            raise UserError(f"search.{error}; what is not given is the run's") from None
