"""Means over seeds with confidence intervals, from scipy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean and its confidence interval.

    Attributes:
        mean: Mean of the values.
        low: Lower end; not a number for a single value.
        high: Upper end.
        count: Number of values.
    """

    mean: float
    low: float
    high: float
    count: int

    def text(self, digits: int = 1, sign: bool = False) -> str:
        """The interval for a table: "68.2 ± 1.2", or with both ends where a bound has cut one off."""
        plus = "+" if sign else ""
        mean = f"{self.mean:{plus}.{digits}f}"
        if math.isnan(self.low):
            return mean
        below, above = self.mean - self.low, self.high - self.mean
        if math.isclose(below, above, abs_tol=0.5 * 10**-digits):
            return f"{mean} ± {above:.{digits}f}"
        return f"{mean} ({self.low:{plus}.{digits}f} to {self.high:{plus}.{digits}f})"


def mean_interval(values: Sequence[float], bounds: tuple[float, float] = (-math.inf, math.inf)) -> Interval:
    """The mean of independent values with Student's t interval.

    Args:
        values: One value a seed.
        bounds: The range that the quantity can have, (0, 100) for a percentage. The interval is cut to it: what it
            loses contains no possible value of the mean, so it covers the mean as often as before.

    Raises:
        ValueError: If there is no value, or one outside of the bounds.
    """
    if not len(values):
        raise ValueError("An interval needs at least one value, got none.")
    if min(values) < bounds[0] or max(values) > bounds[1]:
        raise ValueError(f"The values must lie between {bounds[0]} and {bounds[1]}, got {list(values)}.")
    count, mean = len(values), float(np.mean(values))
    if count == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * stats.sem(values))
    return Interval(mean, max(mean - half, bounds[0]), min(mean + half, bounds[1]), count)


def paired_difference(
    values: Mapping[int, float], reference: Mapping[int, float], bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Interval | None:
    """The mean difference to a reference over the seeds that both have, with the interval of the paired t test.

    What a seed does to both (which clouds were drawn, how hard they are) drops out of the difference.

    Args:
        values: Value by seed.
        reference: Value of the reference by seed.
        bounds: The range of a difference, (-100, 100) for percentages; see [`mean_interval`].

    Returns:
        The interval of `values - reference`; `None` if they share no seed.
    """
    seeds = sorted(values.keys() & reference.keys())
    return mean_interval([values[seed] - reference[seed] for seed in seeds], bounds) if seeds else None
