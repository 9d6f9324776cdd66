import math

import pytest

from point_peft_hf.studies import mean_interval, paired_difference


def test_interval_of_three_values_by_hand():
    # Student's t for two degrees of freedom at 97.5 % is 4.3027 (any table); the standard deviation of 1, 2, 3 is 1.
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2
    assert interval.half_width == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert interval.low == pytest.approx(2 - 2.4842, abs=1e-4)
    assert interval.count == 3


def test_one_value_has_no_interval():
    interval = mean_interval([0.5])
    assert interval.mean == 0.5
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def test_intervals_cover_the_mean_as_often_as_they_say():
    # 90 % of 200 intervals of five normal values should cover their mean; 3 standard deviations of that are 6.4 %.
    import random

    rng = random.Random(0)
    intervals = [mean_interval([rng.gauss(1, 2) for _ in range(5)], 0.9) for _ in range(200)]
    assert 0.836 < sum(i.low <= 1 <= i.high for i in intervals) / 200 < 0.964


def test_a_paired_difference_takes_out_what_the_seed_does_to_both():
    seeds = {0: 0.5, 1: 0.7, 2: 0.9, 5: 0.1}
    difference = paired_difference({seed: value + 0.01 for seed, value in seeds.items()}, {0: 0.5, 1: 0.7, 2: 0.9})
    assert difference.count == 3
    assert difference.mean == pytest.approx(0.01)
    assert difference.half_width < 1e-9


def test_no_seed_in_common():
    assert paired_difference({0: 0.1}, {1: 0.1}) is None


@pytest.mark.parametrize(("values", "confidence", "message"), [([], 0.95, "got none"), ([1.0], 95, "got 95")])
def test_wrong_input(values, confidence, message):
    with pytest.raises(ValueError, match=message):
        mean_interval(values, confidence)
