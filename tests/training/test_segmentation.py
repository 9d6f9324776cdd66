import json
from pathlib import Path

import numpy as np
import pytest
import torch

from point_peft_hf.data import PointCloudDataset, load_dataset
from point_peft_hf.data.readers import read_shifted
from point_peft_hf.io import model_card
from point_peft_hf.training import (
    METHODS,
    Finetuning,
    PartPredictor,
    PointCloudArguments,
    Predictor,
    SegmentationMetrics,
    SegmentationTask,
    finetune,
    load_predictor,
    load_segmentation_task,
    parse_arguments,
    predict_parts,
    results_table,
)

PARTS = [[3, 4], [0, 1, 2], [5]]


def slow_ious(predictions, labels, categories):
    """The convention of ShapeNetPart, point by point."""
    ious = []
    for predicted, true, category in zip(predictions.tolist(), labels.tolist(), categories.tolist(), strict=True):
        pairs = [(p, t) for p, t in zip(predicted, true, strict=True) if t != -100]
        scores = []
        for part in PARTS[category]:
            both = sum(p == part and t == part for p, t in pairs)
            either = sum(p == part or t == part for p, t in pairs)
            scores.append(1.0 if either == 0 else both / either)
        if pairs:
            ious.append((category, sum(scores) / len(scores)))
    return ious


def test_metrics_by_hand():
    metrics = SegmentationMetrics(PARTS)
    predictions = torch.tensor([[3, 3, 4, 4], [0, 0, 0, 1], [5, 5, 5, 5]])
    labels = torch.tensor([[3, 4, 4, 4], [0, 0, 0, -100], [5, 5, 5, 5]])
    metrics.update(predictions, labels, torch.tensor([0, 1, 2]))
    # Object 0: 1/2 and 2/3. Object 1: all right; parts 1 and 2 neither there nor predicted where it is labelled.
    scores = metrics.compute()
    first = (1 / 2 + 2 / 3) / 2
    assert scores["instance_miou"] == pytest.approx((first + 1 + 1) / 3)
    assert scores["accuracy"] == pytest.approx(10 / 11)
    metrics.update(predictions[:1], labels[:1], torch.tensor([0]))
    scores = metrics.compute()
    assert scores["instance_miou"] == pytest.approx((2 * first + 2) / 4)
    assert scores["category_miou"] == pytest.approx((first + 1 + 1) / 3)
    # An object without any label does not count.
    metrics.update(predictions[:1], torch.full((1, 4), -100), torch.tensor([0]))
    assert metrics.compute() == scores


def test_metrics_equal_a_slow_count():
    generator = torch.Generator().manual_seed(0)
    metrics, ious = SegmentationMetrics(PARTS), []
    for _ in range(5):
        categories = torch.randint(0, 3, (8,), generator=generator)
        allowed = [torch.tensor(PARTS[category]) for category in categories.tolist()]
        labels, predictions = (
            torch.stack([parts[torch.randint(0, len(parts), (6,), generator=generator)] for parts in allowed])
            for _ in range(2)
        )
        labels[torch.rand(labels.shape, generator=generator) < 0.3] = -100
        metrics.update(predictions, labels, categories)
        ious += slow_ious(predictions, labels, categories)
    scores = metrics.compute()
    assert scores["instance_miou"] == pytest.approx(np.mean([iou for _, iou in ious]))
    by_category = [np.mean([iou for category, iou in ious if category == wanted]) for wanted in range(3)]
    assert scores["category_miou"] == pytest.approx(np.mean(by_category))


def test_nothing_counted():
    assert SegmentationMetrics(PARTS).compute() == {"instance_miou": 0.0, "category_miou": 0.0, "accuracy": 0.0}


def test_a_part_is_chosen_among_those_of_the_category():
    logits = torch.tensor([[[9.0, 1, 2, 3, 4, 5]], [[1.0, 2, 3, 9, 9, 9]]])
    assert predict_parts(logits, torch.tensor([0, 1]), PARTS).tolist() == [[4], [2]]
    assert predict_parts(logits, None, PARTS).tolist() == [[0], [3]]
    assert predict_parts(logits, torch.tensor([0, 1]), None).tolist() == [[0], [3]]


def objects(count, num_points=160, seed=0):
    """Poles (foot, pole, knob) and tables (top, legs), parts from 0; the tables come first."""
    generator = np.random.default_rng(seed)
    clouds = generator.uniform(-1, 1, size=(count, num_points, 3)).astype(np.float32)
    labels = np.arange(count) % 2
    clouds[labels == 1, :, ::2] *= 0.1
    parts = np.where(clouds[..., 1] > 0.8, 0, 1)
    poles = np.digitize(clouds[..., 1], [-0.8, 0.8]) + 2
    return clouds, labels, np.where(labels[:, None] == 1, poles, parts)


@pytest.fixture(scope="module")
def task() -> SegmentationTask:
    clouds, labels, parts = objects(44)
    names, class_parts = ["table", "pole"], [[0, 1], [2, 3, 4]]
    whole = PointCloudDataset(clouds, labels, names, part_labels=parts, class_parts=class_parts)
    splits = [whole.select(np.arange(start, stop)) for start, stop in ((0, 32), (32, 38), (38, 44))]
    return SegmentationTask(whole.part_names, names, class_parts, *splits)


@pytest.fixture
def segment(tiny_backbone, task):
    def make(output_dir, **options) -> Finetuning:
        defaults = {"num_train_epochs": 1, "per_device_train_batch_size": 8, "augmentation": "segmentation"}
        defaults |= {"task": "segmentation", "model": tiny_backbone, "output_dir": str(output_dir)}
        (method,), what, how = parse_arguments(defaults | options)
        return Finetuning(method, what, how, task, report=lambda line: None)

    return make


@pytest.mark.parametrize("method", METHODS)
def test_a_run_trains_saves_and_predicts(method, segment, task, tmp_path):
    run = segment(tmp_path, method=method)
    record = run.run()
    assert record["parameters"]["received_gradient"] == record["parameters"]["trainable"]
    assert record["score"] == "instance_miou"
    assert (
        record["history"][record["best_epoch"] - 1]["validation_instance_miou"] == record["validation_instance_miou"]
    )
    assert record["class_names"] == ["table 0", "table 1", "pole 0", "pole 1", "pole 2"]
    assert "| test mIoU | category mIoU |" in results_table([record])

    predictor = load_predictor(str(tmp_path / method))
    assert isinstance(predictor, PartPredictor)
    assert predictor.category_names == ["table", "pole"]
    cloud = task.test[1]["points"]
    run.trainer.model.eval()
    prediction = predictor.predict(cloud * 250 + 1000, "pole")
    with torch.no_grad():
        batch = run.processor([cloud], part_labels=[torch.arange(160)])
        logits = run.trainer.model(points=batch["points"], category_ids=torch.tensor([1])).logits
    expected = predict_parts(logits, torch.tensor([1]), task.category_parts)[0].numpy()
    # Another scale and place round otherwise, which may turn a point that lies between two parts.
    same = prediction.labels[batch["part_labels"][0].numpy()] == expected
    assert same.mean() > 0.98
    np.testing.assert_array_equal(prediction.points, cloud.numpy() * 250 + 1000)


def test_it_learns(segment, tmp_path):
    record = segment(tmp_path, method="linear", num_train_epochs=12, learning_rate=0.02).run()
    assert record["test"]["instance_miou"] > 0.6 > record["history"][0]["validation_instance_miou"]


def test_the_adapter_tells_its_card(segment, tmp_path):
    segment(tmp_path, method="linear").run()
    card = model_card(tmp_path / "linear")
    for text in (
        "point-cloud-segmentation",
        "segments point clouds into 5 parts",
        "category_ids=torch.tensor([0])",
        "`category_ids` of the objects: 0 table, 1 pole",
        "test instance mIoU",
    ):
        assert text in card, text


@pytest.fixture(scope="module")
def adapter(tiny_backbone, task, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("segmentation")
    arguments = {"method": "linear", "model": tiny_backbone, "task": "segmentation", "output_dir": str(folder)}
    finetune(arguments | {"num_train_epochs": 1}, task, report=lambda line: None)
    return str(folder / "linear")


def test_every_point_of_a_file_gets_the_part_of_the_nearest_sampled_one(adapter):
    clouds, _, _ = objects(2, num_points=700, seed=3)
    predictor = load_predictor(adapter)
    prediction = predictor.predict(clouds[0], "table")
    assert set(np.unique(prediction.labels)) <= {0, 1}
    assert sum(prediction.shares().values()) == pytest.approx(1)
    (kept,) = predictor.processor([clouds[0]], part_labels=[torch.arange(700)])["part_labels"].numpy()
    distances = np.linalg.norm(clouds[0][:, None] - clouds[0][kept], axis=-1)
    np.testing.assert_array_equal(prediction.labels, prediction.labels[kept[distances.argmin(axis=1)]])


def test_predicted_files_are_labelled_data(adapter, tmp_path):
    clouds, _, _ = objects(4, num_points=200, seed=4)
    predictor = load_predictor(adapter)
    predictions = [predictor.predict(cloud, "pole") for cloud in clouds]
    for index, prediction in enumerate(predictions):
        prediction.write(tmp_path / f"{index}{'.ply' if index % 2 else '.npy'}")
    splits = load_dataset(tmp_path, parts=True, progress=False, cache_dir=None)
    items = [item for split in splits.values() for item in split]
    for item, place in zip(items, np.concatenate([split.sample_ids for split in splits.values()]), strict=True):
        np.testing.assert_array_equal(item["points"], clouds[place])
        np.testing.assert_array_equal(item["part_labels"], predictions[place].labels)


def test_parts_of_a_georeferenced_scan(adapter, tmp_path, recwarn):
    """The parts do not depend on the place, and lie over the scan."""
    predictor, offset = load_predictor(adapter), np.array([350000, 5600000, 100])
    # On a grid that float64 has at the offset, too.
    near = np.round(objects(2, num_points=700, seed=3)[0][0] * 2.0**20) / 2.0**20
    expected = predictor.predict(near, "table")
    assert expected.points.dtype == np.float32
    np.save(tmp_path / "scan.npy", near + offset)
    for cloud in (near + offset, tmp_path / "scan.npy"):
        prediction = predictor.predict(cloud, "table")
        assert (prediction.labels == expected.labels).mean() > 0.99
        np.testing.assert_allclose(prediction.points, near + offset, rtol=0, atol=1e-6)
        prediction.write(tmp_path / "parts.ply")
        points, shift = read_shifted(tmp_path / "parts.ply")
        np.testing.assert_allclose(points + shift, near + offset, rtol=0, atol=1e-6)
    assert not [warning for warning in recwarn if "shifted" in str(warning.message)]


def test_colors(adapter):
    prediction = load_predictor(adapter).predict(objects(1)[0][0], "table")
    prediction.labels, prediction.part_names = np.arange(160) % 20, [f"part {index}" for index in range(20)]
    colors = prediction.colors()
    assert colors.dtype == np.uint8
    assert len(np.unique(colors, axis=0)) == 20
    assert len(np.unique(colors[prediction.labels == 3], axis=0)) == 1


def test_the_category_must_be_known(adapter):
    predictor = load_predictor(adapter)
    cloud = objects(1)[0][0]
    with pytest.raises(ValueError, match="categories table, pole, and must know .*: none was given. Pass one of them"):
        predictor.predict(cloud)
    with pytest.raises(ValueError, match="got 'chair'"):
        predictor.predict(cloud, "chair")


def test_classes_of_parts_are_not_asked_for(adapter):
    with pytest.raises(ValueError, match="tells parts apart.*load_predictor"):
        Predictor.from_pretrained(adapter)


def test_one_category_need_not_be_told(tmp_path, task):
    single = SegmentationTask(["a", "b"], ["table"], [[0, 1]], task.train, task.validation, task.test)
    assert single.model_fields == {"num_categories": 0, "category_names": ["table"], "category_parts": [[0, 1]]}


def test_loading_a_folder(tmp_path):
    clouds, labels, parts = objects(20)
    for index, (cloud, label, part) in enumerate(zip(clouds, labels, parts, strict=True)):
        folder = tmp_path / ("test" if index < 4 else "train") / ("pole" if label else "table")
        folder.mkdir(parents=True, exist_ok=True)
        np.savetxt(folder / f"{index}.txt", np.column_stack([cloud, part]))
    task = load_segmentation_task(str(tmp_path), max_train_clouds=12)
    assert (task.category_names, task.category_parts) == (["pole", "table"], [[2, 3, 4], [0, 1]])
    assert task.class_names == ["table 0", "table 1", "pole 0", "pole 1", "pole 2"]
    assert [len(split) for split in (task.train, task.validation, task.test)] == [10, 2, 4]


def test_shapes_without_parts():
    with pytest.raises(ValueError, match="The procedural shapes have no parts.*--data with a folder"):
        load_segmentation_task("procedural")
    with pytest.raises(
        ValueError, match="--task must be one of classification, segmentation, scene_segmentation, got 'detection'"
    ):
        PointCloudArguments(task="detection")


def test_fields_of_the_backbone(segment, tmp_path):
    """The published decoder, other groups and other points, from the command line."""
    fields = {"num_groups": 12, "segmentation_token_size": 0, "segmentation_propagation_sizes": [40, 30]}
    record = segment(tmp_path, method="linear", model_config=fields, num_points=64).run()
    config = json.loads(Path(tmp_path / "linear" / "adapter_config.json").read_text())["backbone"]
    assert (config["num_groups"], config["segmentation_propagation_sizes"]) == (12, [40, 30])
    predictor = load_predictor(str(tmp_path / "linear"))
    assert predictor.processor.num_points == 64
    assert predictor.model.config.num_groups == 12
    assert record["arguments"]["model_config"] == fields
