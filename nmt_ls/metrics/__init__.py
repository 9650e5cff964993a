"""The shared metrics library: calibration, likelihood, temperature, translation, statistics, plots.

Names are loaded when first used, so that importing the package costs nothing and plotting or sacrebleu is only
imported by those who need it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nmt_ls.metrics.calibration import CalibrationAccumulator, expected_calibration_error
    from nmt_ls.metrics.figures import calibration_figures
    from nmt_ls.metrics.likelihood import LikelihoodAccumulator
    from nmt_ls.metrics.temperature import fit_temperature, log_probs

__all__ = [
    "CalibrationAccumulator",
    "LikelihoodAccumulator",
    "calibration_figures",
    "expected_calibration_error",
    "fit_temperature",
    "log_probs",
]

_HOMES = {
    "CalibrationAccumulator": "calibration",
    "expected_calibration_error": "calibration",
    "LikelihoodAccumulator": "likelihood",
    "calibration_figures": "figures",
    "fit_temperature": "temperature",
    "log_probs": "temperature",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
