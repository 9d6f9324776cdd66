import numpy as np
import pytest

from point_peft_hf.data import PointCloudDataset, ProceduralShapes
from point_peft_hf.data.orientation import likely_up_axis


@pytest.fixture(scope="module")
def shapes() -> np.ndarray:
    shapes = ProceduralShapes(clouds_per_class=6, split="train", corruption="scan", num_points=256)
    return np.stack([shapes[index]["points"].numpy() for index in range(len(shapes))])


def dataset(clouds):
    return PointCloudDataset(clouds, [0] * len(clouds), ["thing"])


@pytest.mark.parametrize(("order", "up"), [((0, 1, 2), "y"), ((0, 2, 1), "z"), ((1, 0, 2), "x"), ((2, 0, 1), "z")])
def test_the_up_axis_of_standing_objects(order, up, shapes):
    assert likely_up_axis(dataset(shapes[..., order])) == up


def test_nothing_is_said_where_no_axis_stands_out(shapes):
    rng = np.random.default_rng(0)
    turned = np.stack([cloud @ np.linalg.qr(rng.normal(size=(3, 3)))[0] for cloud in shapes]).astype(np.float32)
    assert likely_up_axis(dataset(turned)) is None
    assert likely_up_axis(dataset(rng.normal(size=(40, 200, 3)).astype(np.float32))) is None
    assert likely_up_axis(dataset(shapes[:10])) is None
    assert likely_up_axis(dataset(np.zeros((20, 50, 3), np.float32))) is None
