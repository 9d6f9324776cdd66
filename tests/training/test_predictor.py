from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from point_peft_hf import PointMAEConfig, PointMAEModel
from point_peft_hf.training import Predictor, SharedValues, finetune


@pytest.fixture(scope="module")
def adapter(tiny_backbone, tiny_task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    arguments = {"model": tiny_backbone, "output_dir": str(folder), "num_train_epochs": 1}
    finetune(arguments, tiny_task, report=lambda line: None)
    return folder / "point_peft"


def test_the_adapter_alone_names_backbone_and_classes(adapter, tiny_task):
    (adapter / "run.json").rename(adapter / "run.json.away")
    try:
        predictor = Predictor.from_pretrained(str(adapter))
    finally:
        (adapter / "run.json.away").rename(adapter / "run.json")
    assert predictor.class_names == tiny_task.class_names
    ranked = predictor.predict(tiny_task.test[3]["points"].numpy(), top=99)
    assert len(ranked) == len(tiny_task.class_names)
    assert sum(probability for _, probability in ranked) == pytest.approx(1, abs=1e-5)


def test_points_that_are_not_finite(adapter, tiny_task):
    predictor = Predictor.from_pretrained(str(adapter))
    cloud = tiny_task.test[3]["points"].numpy()
    broken = np.insert(cloud, [0, 7, 9], np.nan, axis=0)
    with pytest.raises(ValueError, match="cloud 0: 3 of .* drop_invalid=True"):
        predictor.predict(broken)
    assert predictor.predict(broken, drop_invalid=True) == predictor.predict(cloud)
    with pytest.raises(ValueError, match="cloud 1: 3 of"):
        predictor.predict_classes([cloud, broken], batch_size=2)
    first, second = predictor.predict_classes([cloud, broken], batch_size=2, drop_invalid=True)
    assert first == second


def test_several_threads(adapter, tiny_task):
    predictor = Predictor.from_pretrained(str(adapter))
    clouds = [cloud["points"].numpy() for cloud in (tiny_task.test[index] for index in range(4))]
    expected = [predictor.predict(cloud, top=99) for cloud in clouds]
    with ThreadPoolExecutor(8) as pool:
        for number, ranked in enumerate(
            pool.map(lambda number: predictor.predict(clouds[number % 4], 99), range(200))
        ):
            wanted = dict(expected[number % 4])
            assert dict(ranked) == pytest.approx(wanted, abs=1e-5)


def test_bfloat16(adapter, tiny_task):
    exact, rounded = (Predictor.from_pretrained(str(adapter), precision=name) for name in ("float32", "bfloat16"))
    clouds = [tiny_task.test[index]["points"].numpy() for index in range(4)]
    expected, found = (np.stack(list(each.predict_many(clouds))) for each in (exact, rounded))
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() < 0.05
    shared = SharedValues()
    for predictor, probabilities in ((exact, expected), (rounded, found), (exact, expected)):
        np.testing.assert_array_equal(np.stack(list(predictor.predict_many(clouds, shared=shared))), probabilities)
    with pytest.raises(ValueError, match="must be one of float32, bfloat16, got 'int8'"):
        Predictor.from_pretrained("nowhere", precision="int8")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"missing' is neither a folder nor the name of a repository"):
        Predictor.from_pretrained(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match=r"holds neither an adapter .* nor a model"):
        Predictor.from_pretrained(str(tmp_path))


def test_another_backbone_is_refused(adapter, tiny_backbone, tmp_path):
    torch.manual_seed(1)
    other = PointMAEModel(PointMAEConfig.from_pretrained(tiny_backbone), use_class_token=False)
    other.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Load the backbone that the adapter was made for"):
        Predictor.from_pretrained(str(adapter), str(tmp_path))
