"""Training clouds that are stored with an adapter."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from point_peft_hf.data import PointCloudDataset, PointCloudProcessor, write_point_cloud
from point_peft_hf.io.examples import EXAMPLES_NAME, TrainingExamples


@pytest.fixture
def dataset(tmp_path):
    files = []
    for index in range(5):
        folder = tmp_path / "data" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        files.append(folder / f"{index}.ply")
        write_point_cloud(files[-1], np.random.default_rng(index).normal(size=(3000, 3)) + 1000)
    return PointCloudDataset(files, [0, 1, 0, 1, 0], ["a", "b"]).select([1, 2, 3, 4])


def test_what_is_stored_comes_back(dataset, tmp_path):
    assert TrainingExamples.load(tmp_path) is None
    examples = TrainingExamples.of(dataset, PointCloudProcessor(num_points=256))
    examples.save(tmp_path)
    loaded = TrainingExamples.load(tmp_path)
    assert loaded.names == ["b/1.ply", "a/2.ply", "b/3.ply", "a/4.ply"]
    assert loaded.labels.tolist() == [1, 0, 1, 0]
    assert loaded.find([3, 0, 1]) == [2, None, 0]
    assert loaded.places.tolist() == [0, 1]
    assert np.abs(loaded.clouds.mean(axis=1)).max() < 0.2
    assert loaded.thumbnails.min() == 0
    assert loaded.thumbnails.max() == 255


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("places", np.array([0, 9]), "'places' are out of range"),
        ("labels", np.zeros(2, dtype=np.int64), r"'sample_ids' must be int64 of shape \(2,\)"),
        ("clouds", np.zeros((2, 5, 3), np.float32), "'clouds' must be float32"),
        ("clouds", np.full((2, 2048, 3), np.nan, np.float32), "'clouds' are not all finite"),
        ("more", np.zeros(1), "unexpected keyword argument"),
    ],
)
def test_damaged_files_are_refused(name, value, message, dataset, tmp_path):
    TrainingExamples.of(dataset, PointCloudProcessor(num_points=64)).save(tmp_path)
    arrays = load_file(tmp_path / EXAMPLES_NAME) | {name: value}
    save_file(arrays, tmp_path / EXAMPLES_NAME, metadata={"names": '["w", "x", "y", "z"]'})
    with pytest.raises(ValueError, match=f"examples.safetensors: damaged, .*{message}"):
        TrainingExamples.load(tmp_path)
