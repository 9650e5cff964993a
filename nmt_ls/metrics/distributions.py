"""The few distribution functions that `statistics` needs and that neither Python nor numpy has."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

NORMAL = NormalDist()
MANY_DEGREES = 1e7  # beyond, the incomplete beta function loses all digits to cancellation


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function I_x(a, b), by its continued fraction (Lentz's algorithm)."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1) / (a + b + 2):  # the fraction converges quickly on the other side only
        return 1.0 - incomplete_beta(b, a, 1.0 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1) or tiny)
    fraction = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        before = fraction
        for term in (even, odd):
            d = 1.0 / (1.0 + term * d or tiny)
            c = 1.0 + term / c or tiny
            fraction *= c * d
        if abs(fraction - before) <= 1e-15 * abs(fraction):
            break
    return math.exp(log_front) * fraction / a


def student_t_cdf(t: float, degrees: float) -> float:
    """P(T <= t) for Student's t; the normal distribution for many degrees of freedom (it differs by less than 1e-7)."""
    if degrees > MANY_DEGREES or math.isinf(t):
        return NORMAL.cdf(t)
    tail = 0.5 * incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t))
    return tail if t < 0 else 1.0 - tail


def student_t_quantile(p: float, degrees: float) -> float:
    """The t with P(T <= t) = p, by bisection."""
    low, high = -1.0, 1.0
    while student_t_cdf(low, degrees) > p:
        low *= 2
    while student_t_cdf(high, degrees) < p:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if student_t_cdf(middle, degrees) < p:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def t_test_power(noncentrality: float, degrees: float, level: float) -> float:
    """Power of a two-sided t-test: the noncentral t beyond both critical values.

    Given the ratio s of estimated to true deviation, the statistic is normal; s has the chi distribution over the
    root of its degrees of freedom, and is integrated out by Gauss-Legendre quadrature.
    """
    critical = student_t_quantile(1 - level / 2, degrees)
    nodes, weights = np.polynomial.legendre.leggauss(400)
    top = 1.0 + 12.0 / math.sqrt(2 * degrees)
    s = (nodes + 1) * top / 2
    log_density = (
        math.log(2) + degrees / 2 * math.log(degrees / 2) - math.lgamma(degrees / 2)
        + (degrees - 1) * np.log(s) - degrees * s**2 / 2
    )  # fmt: skip
    beyond = [NORMAL.cdf(noncentrality - critical * v) + NORMAL.cdf(-noncentrality - critical * v) for v in s]
    return float((np.exp(log_density) * np.asarray(beyond) * weights).sum() * top / 2)
