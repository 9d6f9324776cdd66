"""Semantic segmentation of scenes through the training command."""

import json

import numpy as np
import pytest
import torch

from point_peft_hf import PointTransformerV3Config, PointTransformerV3Model
from point_peft_hf.data.rooms import FINETUNING_CLASSES, ProceduralRooms
from point_peft_hf.data.scenes import SceneDataset, SceneProcessor
from point_peft_hf.scenes import ScenePredictor, SceneSegmentationTask
from point_peft_hf.training import Finetuning, TrainingDiverged, parse_arguments

METHODS = ("linear", "bias", "lora", "ln_tuning", "voxel_adapter", "patch_prompt", "full")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = PointTransformerV3Config(
        depths=[1, 1],
        hidden_sizes=[16, 32],
        num_attention_heads=[1, 2],
        in_channels=6,
        feature_names=["coordinates", "colors"],
        grid_size=0.3,
    )
    PointTransformerV3Model(config).save_pretrained(folder)
    SceneProcessor(0.3, ("coordinates", "colors")).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def task():
    splits = [
        SceneDataset(
            ProceduralRooms(num_rooms=count, seed=0, split=split, num_points=2000),
            FINETUNING_CLASSES,
        )
        for split, count in (("train", 6), ("validation", 3), ("test", 5))
    ]
    return SceneSegmentationTask(list(FINETUNING_CLASSES), *splits)


@pytest.fixture
def segment(encoder, task):
    def make(output_dir, **options):
        defaults = {"task": "scene_segmentation", "model": encoder, "output_dir": str(output_dir)}
        (method,), what, how = parse_arguments(defaults | {"num_train_epochs": 2} | options)
        return Finetuning(method, what, how, task, report=options.pop("report", lambda line: None))

    return make


@pytest.mark.parametrize("method", METHODS)
def test_a_run_trains_saves_and_measures_every_point(method, segment, task, tmp_path):
    run = segment(tmp_path, method=method, per_device_train_batch_size=2)
    record = run.run()
    assert record["parameters"]["received_gradient"] == record["parameters"]["trainable"]
    assert record["score"] == "miou"
    assert record == json.loads((tmp_path / method / "run.json").read_text())

    # The same by hand, scene by scene and point by point.
    predictor, metrics = ScenePredictor(run.trainer.model.eval(), run.processor), task.metrics()
    for index in range(len(task.test)):
        item = task.test[index]
        prediction = predictor.predict({"points": item["points"], "colors": item["colors"]})
        metrics.update(torch.as_tensor(prediction.labels), item["labels"])
    expected = metrics.compute()
    assert record["test"] == pytest.approx(expected, abs=1e-4)
    card = tmp_path / method / "README.md"
    if method != "full":
        assert "ScenePredictor(model, processor)" in card.read_text()
        assert f"* test mIoU {100 * record['test']['miou']:.1f} %" in card.read_text()


def test_arguments_of_objects_are_refused(segment, tmp_path):
    with pytest.raises(ValueError, match="--test_votes and --num_points are for objects"):
        segment(tmp_path, num_points=64)
    with pytest.raises(ValueError, match="--augmentation of scenes is scene or none, got 'rotate'"):
        segment(tmp_path, augmentation="rotate")


def test_methods_of_objects_are_refused_on_scenes(segment, tmp_path):
    with pytest.raises(ValueError, match="PointTransformerV3"):
        segment(tmp_path, method="stag")


def test_a_scan_is_labelled_by_the_command(segment, tmp_path, monkeypatch, capsys):
    from point_peft_hf.commands import main
    from point_peft_hf.data import read_labelled_cloud, write_point_cloud

    segment(tmp_path, method="voxel_adapter", num_train_epochs=1).run()
    room = ProceduralRooms(num_rooms=1, seed=3, num_points=1500)[0]
    write_point_cloud(tmp_path / "room.ply", room.points, room.colors)
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "room.ply", "--adapter", "voxel_adapter", "--output_dir", "labelled"]) == 0
    assert capsys.readouterr().out.startswith("room.ply: ")
    labelled = read_labelled_cloud(tmp_path / "labelled" / "room_labelled.ply")
    assert labelled.shape == (len(room.points), 4)
    np.hstack([room.points, room.colors]).astype("<f4").tofile(tmp_path / "scan.bin")
    options = ["--adapter", "voxel_adapter", "--output_dir", "labelled"]
    assert main(["predict", "scan.bin", *options]) == 3
    assert "declare them, as in columns=" in capsys.readouterr().out
    assert main(["predict", "scan.bin", *options, "--columns", "x y z red green blue"]) == 0
    again = read_labelled_cloud(tmp_path / "labelled" / "scan_labelled.ply")
    assert (again[:, 3] == labelled[:, 3]).mean() > 0.99


def test_a_loss_that_is_not_finite_names_the_scenes(segment, task, tmp_path):
    run = segment(tmp_path, method="linear", per_device_train_batch_size=2)
    head = next(p for name, p in run.trainer.model.named_parameters() if "modules_to_save" in name)
    with torch.no_grad():
        head.fill_(float("inf"))
    with pytest.raises(TrainingDiverged, match=r"in step 1 \(epoch 1\), on \w+ \d, \w+ \d\. The model and the batch"):
        run.run()
    facts = json.loads((tmp_path / "linear" / "failure" / "failure_0.json").read_text())
    known = [task.train.scenes[index].name for index in range(len(task.train))]
    assert len(facts["clouds"]) == 2
    assert set(facts["clouds"]) <= set(known)
