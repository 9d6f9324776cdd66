import math

import numpy as np
import pytest
from intervals import mean_interval, paired_difference
from scipy import stats


def test_three_values_by_hand():
    # Student's t for two degrees of freedom at 97.5 % is 4.3027 (any table); the standard deviation of 1, 2, 3 is 1.
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2
    assert interval.high - 2 == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert 2 - interval.low == pytest.approx(2.4842, abs=1e-4)
    assert interval.count == 3
    assert interval.text() == "2.0 ± 2.5"


def test_one_value_has_no_interval():
    interval = mean_interval([0.5])
    assert interval.mean == 0.5
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert interval.text(digits=2) == "0.50"


@pytest.mark.parametrize("values", [[99.0, 100.0], [0.0, 3.0], [100.0, 100.0, 100.0]])
def test_percentages_stay_between_0_and_100(values):
    interval = mean_interval(values, (0, 100))
    assert 0 <= interval.low <= interval.mean <= interval.high <= 100


def test_an_interval_that_is_cut_gives_both_ends():
    # 12.706 is Student's t for one degree of freedom; half the distance of two values is their standard error.
    assert mean_interval([97.0, 99.0], (0, 100)).text() == f"98.0 ({98 - 12.706:.1f} to 100.0)"
    assert mean_interval([60.0, 61.0], (0, 100)).text() == "60.5 ± 6.4"


@pytest.mark.parametrize(("mean", "bounds"), [(1.0, (-math.inf, math.inf)), (0.5, (0.0, 1.0))])
def test_intervals_cover_the_mean_as_often_as_they_say(mean, bounds):
    # 95 % of 300 intervals should cover the mean; three standard deviations of that share are 3.8 %.
    rng = np.random.default_rng(0)
    draws = rng.normal(mean, 2, (300, 5)) if bounds[0] < 0 else rng.uniform(0, 1, (300, 5))
    intervals = [mean_interval(list(values), bounds) for values in draws]
    assert 0.91 < np.mean([i.low <= mean <= i.high for i in intervals]) < 0.99


def test_a_paired_difference_is_that_of_the_paired_t_test():
    values, reference = {0: 0.5, 1: 0.7, 2: 0.95, 5: 0.1}, {2: 0.9, 0: 0.52, 1: 0.6}
    difference = paired_difference(values, reference)
    expected = stats.ttest_rel([0.5, 0.7, 0.95], [0.52, 0.6, 0.9]).confidence_interval()
    assert difference.count == 3
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high))
    assert difference.text(sign=True) == "+0.0 ± 0.1"


def test_no_seed_in_common():
    assert paired_difference({0: 0.1}, {1: 0.1}) is None


@pytest.mark.parametrize(("values", "message"), [([], "got none"), ([101.0], r"between 0 and 100, got \[101.0\]")])
def test_wrong_input(values, message):
    with pytest.raises(ValueError, match=message):
        mean_interval(values, (0, 100))
