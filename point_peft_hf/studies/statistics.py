"""Means over seeds, with the interval that says how far to trust them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """A mean and its confidence interval.

    Attributes:
        mean: Mean of the values.
        low: Lower end of the interval; not a number if there is one value only.
        high: Upper end.
        count: Number of values.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def half_width(self) -> float:
        """Distance of either end from the mean."""
        return self.high - self.mean


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean of independent values, with Student's t interval.

    Args:
        values: One value a seed.
        confidence: Probability with which the interval covers the mean, if the values are normally distributed.

    Returns:
        The interval. From one value nothing can be said about the spread: its ends are not a number.

    Raises:
        ValueError: If there is no value, or the confidence is not between 0 and 1.
    """
    # Only here: nothing else in the package needs scipy.
    from scipy.stats import t as student_t

    if not values:
        raise ValueError("An interval needs at least one value, got none.")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be between 0 and 1, got {confidence}.")
    count, mean = len(values), statistics.fmean(values)
    if count == 1:
        return Interval(mean, math.nan, math.nan, 1)
    quantile = float(student_t.ppf((1 + confidence) / 2, count - 1))
    half_width = quantile * statistics.stdev(values) / math.sqrt(count)
    return Interval(mean, mean - half_width, mean + half_width, count)


def paired_difference(
    values: dict[int, float], reference: dict[int, float], confidence: float = 0.95
) -> Interval | None:
    """The mean difference to a reference over the seeds that both have.

    What a seed does to both (which clouds were drawn, which are hard) drops out of the difference, so its interval is
    narrower than those of the two means tell.

    Args:
        values: Value by seed.
        reference: Value of the reference by seed.
        confidence: See [`mean_interval`].

    Returns:
        The interval of `values - reference`, or `None` if they have no seed in common.
    """
    seeds = sorted(values.keys() & reference.keys())
    return mean_interval([values[seed] - reference[seed] for seed in seeds], confidence) if seeds else None
