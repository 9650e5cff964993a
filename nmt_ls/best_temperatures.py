"""The best temperatures of a recipe by NLL, by calibration error and by BLEU, from sums over sentences.

Shapes: J temperatures of NLL and calibration, D those of translations, R resamples or seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nmt_ls.metrics.calibration import MOMENTS, unbiased_squared_l2_from_sums
from nmt_ls.metrics.inputs import FloatArray
from nmt_ls.metrics.temperature_grid import lowest_point
from nmt_ls.metrics.translation import BLEU_STATISTICS, bleu_from_statistics


@dataclass(frozen=True, kw_only=True)
class TemperatureCurves:
    """NLL and calibration error at some temperatures, ascending, and BLEU at others, from one row of sums."""

    temperatures: Sequence[float]
    decoded: Sequence[float]

    def sums(self, parts: Sequence[FloatArray]) -> FloatArray:
        """NLL, tokens, binned sums and BLEU's statistics, each [A, S, its temperatures, ...], side by side."""
        return np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], -1)

    def of(self, total: FloatArray) -> FloatArray:
        """NLL and squared L2 by temperature, then BLEU by temperature: [..., 2J + D]."""
        count, translated = len(self.temperatures), len(self.decoded)
        end = total.shape[-1] - BLEU_STATISTICS * translated
        nll_J, tokens_J, bins, statistics = np.split(total, [count, 2 * count, end], -1)
        lead = total.shape[:-1]
        return np.concatenate(
            [
                nll_J / tokens_J,
                unbiased_squared_l2_from_sums(bins.reshape(*lead, count, MOMENTS, -1)),
                bleu_from_statistics(statistics.reshape(*lead, translated, BLEU_STATISTICS)),
            ],
            -1,
        )

    def split(self, curves: FloatArray) -> list[FloatArray]:
        """The three curves of `of`."""
        count = len(self.temperatures)
        return np.split(curves, [count, 2 * count], -1)

    def best(self, curves_RF: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """The best temperatures by NLL, calibration error and BLEU, between the points of the grids: [R] each."""
        nll_RJ, error_RJ, bleu_RD = self.split(curves_RF)
        inverse = 1 / np.array(self.temperatures)
        return (
            1 / lowest_point(inverse, nll_RJ),
            1 / lowest_point(inverse, error_RJ),
            lowest_point(np.array(self.decoded), -bleu_RD),
        )

    def distance(self, curves_RF: FloatArray) -> FloatArray:
        """|T by NLL - T by BLEU| - |T by calibration error - T by BLEU|: [R]."""
        by_nll, by_error, by_bleu = self.best(curves_RF)
        return np.asarray(np.abs(by_nll - by_bleu) - np.abs(by_error - by_bleu))

    def edges(self, curves_F: FloatArray) -> list[str]:
        """Which of the three are best at the first or last temperature of their grid, so that better may lie beyond."""
        nll_J, error_J, bleu_D = self.split(curves_F)
        lowest = {"NLL": nll_J.argmin(), "calibration error": error_J.argmin(), "BLEU": bleu_D.argmax()}
        ends = {name: (0, len(self.decoded if name == "BLEU" else self.temperatures) - 1) for name in lowest}
        return [name for name, at in lowest.items() if int(at) in ends[name]]
