import numpy as np
import pytest

from point_peft_hf.data import PointCloudError
from point_peft_hf.data.scenes import Scene
from point_peft_hf.data.scenes.scene import color_bytes

POINTS = np.random.default_rng(0).normal(size=(5, 3))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"points": POINTS[:0]}, "holds 0 points; a scene has at least 2"),
        ({"points": POINTS[:1]}, "holds 1 point; a scene has at least 2"),
        (
            {"points": np.ones((3, 50))},
            r"points must be of shape \(num_points, 3\), got \(3, 50\); it looks transposed",
        ),
        ({"points": np.ones((5, 6))}, "colours, normals and labels are given apart"),
        (
            {"points": POINTS, "labels": [1, 2]},
            r"labels must be of shape \(5,\), one for each of the 5 points, got \(2,\)",
        ),
        ({"points": POINTS, "labels": [0.5] * 5}, "labels must be whole numbers, got 0.5"),
        ({"points": POINTS, "labels": [2**25] * 5}, "too large for a class"),
        ({"points": POINTS, "colors": np.full((5, 3), 300)}, "from 0 to 255 or from 0 to 1, got 300 to 300"),
        ({"points": POINTS, "colors": np.full((5, 3), -0.5)}, "got -0.5 to -0.5"),
        ({"points": POINTS, "normals": np.full((5, 3), np.inf)}, "5 of 5 points have NaN or infinite normals"),
        ({"points": POINTS, "colors": np.ones((5, 3))}, "cannot tell whether its colours, all 0 or 1"),
    ],
)
def test_refused(parts, message):
    with pytest.raises(PointCloudError, match=message):
        Scene.make(**parts)


@pytest.mark.parametrize(
    ("colors", "expected"),
    [
        (np.array([0, 128, 255]), [0, 128, 255]),
        (np.array([0.0, 0.5, 1.0]), [0, 128, 255]),
        (np.array([0.0, 128.0, 255.0]), [0, 128, 255]),
        (np.array([0, 32896, 65535], np.uint16), [0, 128, 255]),
        (np.array([0, 1, 255], np.uint16), [0, 1, 255]),
    ],
)
def test_ranges_of_colors(colors, expected):
    assert color_bytes(colors, "a").tolist() == expected


def test_labels_below_0_are_none():
    assert Scene.make(POINTS, labels=[-1, -100, 0, 3, 255]).labels.tolist() == [-100, -100, 0, 3, 255]


def test_a_mapping_without_points_says_what_it_has():
    with pytest.raises(PointCloudError, match="a scene needs 'points'.*got \\['xyz'\\]"):
        Scene.from_any({"xyz": POINTS}, "scene 0")
