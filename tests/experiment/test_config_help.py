"""Help texts, found wherever a configuration's fields may carry them."""

from __future__ import annotations

from dataclasses import dataclass, field

from nmt_ls.experiment.config_help import field_help, prose


@dataclass(frozen=True, kw_only=True)
class Documented:
    """How to search, stop: included.

    beam: kept ones;
    1 is greedy. beam_size,
    stop: share a text. Note: no field.
    """

    beam: int = 1
    beam_size: int = 1
    stop: str = ""
    silent: int = 3


@dataclass(frozen=True, kw_only=True)
class Inherits(Documented):
    beam: int = 2
    stop: str = "x"  # nearer


@dataclass(frozen=True, kw_only=True)
class Sections:
    """Google's way.

    Attributes:
        beam: kept ones,
            over two lines.
        stop: the rule.
    """

    beam: int = 1
    stop: str = ""


@dataclass(frozen=True, kw_only=True)
class Bare:
    beam: int = field(default=1, metadata={"help": "said in metadata"})  # not here
    stop: str = ""
    """Said below,
    at length."""


def test_help_from_docstrings() -> None:
    shared = "share a text. Note: no field."
    assert prose(Documented) == "How to search, stop: included."
    assert field_help(Documented) == {"beam": "kept ones; 1 is greedy.", "beam_size": shared, "stop": shared}
    assert field_help(Inherits) == {"beam": "kept ones; 1 is greedy.", "beam_size": shared, "stop": "nearer"}
    assert prose(Sections) == "Google's way."
    assert field_help(Sections) == {"beam": "kept ones, over two lines.", "stop": "the rule."}
    assert prose(Bare) == ""  # not the signature that dataclass writes
    assert field_help(Bare) == {"beam": "said in metadata", "stop": "Said below, at length."}
