import numpy as np
import pytest
import torch

from point_peft_hf.data import write_point_cloud
from point_peft_hf.data.scenes import SceneCollator
from point_peft_hf.scenes import SceneSegmentationTask, load_scene_task


@pytest.fixture
def folder(tmp_path, rng):
    for index in range(6):
        points = rng.uniform(0, 1, (40, 3)).astype(np.float32)
        labels = np.where(np.arange(40) % 4 == 0, 7, 2)
        write_point_cloud(tmp_path / f"{index}.ply", points, rng.integers(2, 255, (40, 3)), labels)
    return str(tmp_path)


def test_a_folder_becomes_a_task(folder, make_model, processor):
    task = load_scene_task(folder, weights="balanced")
    assert isinstance(task, SceneSegmentationTask)
    assert [len(task.train), len(task.validation), len(task.test)] == [4, 1, 1]
    assert task.class_names == ["2", "7"]
    assert task.model_fields["label_values"] == [2, 7]
    assert task.model_fields["class_weights"] == pytest.approx([0.5, 1.5])
    model, metrics = make_model(num_labels=2), task.metrics()
    batch = SceneCollator(processor, all_points=True)([task.test[0]])
    outputs = model(**task.inputs(batch))
    predictions, labels = task.judge(outputs, batch)
    assert len(predictions) == len(labels) == 40
    metrics.update(predictions, labels)
    assert int(metrics.confusion.sum()) == 40
    del batch["inverse"]
    assert len(task.judge(outputs, batch)[0]) == len(batch["labels"])


def test_voxels_of_a_test_do_not_change_what_is_counted(folder, make_model, processor):
    task = load_scene_task(folder)
    outputs = torch.nn.functional.one_hot(torch.zeros(999, dtype=torch.long), 2).float()
    batch = SceneCollator(type(processor)(5.0, ["coordinates"]), all_points=True)([task.test[0]])
    predictions, labels = task.judge(type("Outputs", (), {"logits": outputs[: len(batch["coordinates"])]}), batch)
    assert len(batch["coordinates"]) == 4
    assert (predictions == 0).all()
    assert (labels == 1).sum() == 10


def test_limits_and_bad_options(folder):
    task = load_scene_task(folder, max_train_scenes=3)
    assert len(task.train) + len(task.validation) == 3
    with pytest.raises(ValueError, match="a limit of scenes must be at least 1"):
        load_scene_task(folder, max_train_scenes=0)
    with pytest.raises(ValueError, match="class weights are one of"):
        load_scene_task(folder, weights="equal")
    with pytest.raises(ValueError, match="the procedural rooms take no columns"):
        load_scene_task(columns="x y z")


def test_the_default_task_is_procedural():
    task = load_scene_task()
    assert [len(task.train), len(task.validation), len(task.test)] == [36, 9, 18]
    assert "bed" in task.class_names
    assert task.model_fields["class_weights"] is None
