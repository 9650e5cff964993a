"""nmt_ls: a from-scratch Transformer translator for studying label smoothing, temperature and calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nmt_ls.translator import Hypothesis, Translator

__all__ = ["Hypothesis", "Translator"]


def __getattr__(name: str) -> Any:
    """Load Translator when it is first asked for: the metrics can be imported without the rest."""
    if name in __all__:
        from nmt_ls import translator

        return getattr(translator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
