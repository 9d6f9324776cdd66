"""`point-peft serve`, by requests to the application."""

import time

import numpy as np
import pytest
from peft import get_peft_model

from point_peft_hf import (
    PointCloudProcessor,
    PointMAEConfig,
    PointMAEForClassification,
    PointMAEForSegmentation,
    PointPeftConfig,
)
from point_peft_hf.commands.serve import Limits, build_app
from point_peft_hf.data import read_labelled_cloud, write_point_cloud
from point_peft_hf.training import PartPredictor, Predictor

testclient = pytest.importorskip("fastapi.testclient")
pytest.importorskip("python_multipart")
SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_groups": 8,
    "group_size": 8,
    "patch_hidden_sizes": (8, 16, 16),
    "classifier_hidden_size": 16,
}
OPTIONS = {"use_prompts": False}


@pytest.fixture(scope="module")
def predictors():
    names = {"id2label": {0: "cup", 1: "jug"}, "label2id": {"cup": 0, "jug": 1}}
    parts = {"num_categories": 2, "category_names": ["lamp", "mug"], "category_parts": [[0], [1]]}
    models = (
        PointMAEForClassification(PointMAEConfig(**SIZES, **names)),
        PointMAEForSegmentation(PointMAEConfig(**SIZES, **names, **parts)),
    )
    classes, parts = (get_peft_model(model, PointPeftConfig(**OPTIONS)) for model in models)
    processor = PointCloudProcessor(num_points=64)
    return {"cups": Predictor(classes, processor), "cups/parts": PartPredictor(parts, processor)}


@pytest.fixture
def client(predictors):
    return testclient.TestClient(build_app(predictors, Limits(max_bytes=100_000)))


@pytest.fixture
def scan(tmp_path):
    points = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    write_point_cloud(tmp_path / "scan.ply", points)
    return tmp_path / "scan.ply", points


def post(client, path, content, name="scan.ply"):
    return client.post(path, files={"file": (name, content)})


def test_the_adapters_are_listed(client):
    listed = client.get("/").json()["adapters"]
    assert listed["cups"] == {"task": "classification", "classes": ["cup", "jug"]}
    assert listed["cups/parts"]["categories"] == ["lamp", "mug"]


def test_classes(client, predictors, scan):
    found = post(client, "/adapters/cups/predict", scan[0].read_bytes()).json()
    expected = dict(predictors["cups"].predict(scan[1], top=2))
    assert found["probabilities"] == pytest.approx(expected, abs=1e-6)
    assert (found["file"], found["class"]) == ("scan.ply", max(expected, key=expected.get))


def test_parts_come_back_as_shares_and_as_a_file(client, predictors, scan, tmp_path):
    expected = predictors["cups/parts"].predict(scan[1], "mug")
    found = post(client, "/adapters/cups/parts/predict?category=mug", scan[0].read_bytes()).json()
    assert found == {"file": "scan.ply", "points": 300, "shares": expected.shares()}
    answer = post(client, "/adapters/cups/parts/label?category=mug", scan[0].read_bytes(), 'my "scan".ply')
    assert answer.headers["content-disposition"] == 'attachment; filename="my %22scan%22_labelled.ply"'
    (tmp_path / "labelled.ply").write_bytes(answer.content)
    np.testing.assert_array_equal(read_labelled_cloud(tmp_path / "labelled.ply")[:, 3], expected.labels)


def test_all_adapters_answer_on_one_cloud(client, predictors, scan):
    found = post(client, "/predict?category=mug", scan[0].read_bytes()).json()
    alone = {name: post(client, f"/adapters/{name}/predict?category=mug", scan[0].read_bytes()) for name in predictors}
    assert found["file"] == "scan.ply"
    assert found["adapters"] == {
        name: {key: value for key, value in answer.json().items() if key != "file"} for name, answer in alone.items()
    }
    assert found["adapters"]["cups/parts"]["points"] == 300
    without = post(client, "/predict", scan[0].read_bytes()).json()["adapters"]
    assert without["cups"] == found["adapters"]["cups"]
    assert "categories lamp, mug" in without["cups/parts"]["error"]
    answer = post(client, "/predict?category=mug", b"no cloud")
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("scan.ply: ")
    assert answer.json()["detail"].count("scan.ply") == 1


@pytest.mark.parametrize(
    ("path", "content", "name", "status", "message"),
    [
        ("cups/predict", b"no cloud", "../secret/a.ply", 422, "a.ply: "),
        ("cups/predict", b"no cloud", "a.exe", 415, "a.exe: files of this kind are not read; read are .asc"),
        ("cups/predict", bytes(100_001), "a.ply", 413, "a.ply: is larger than 0.1 MB"),
        ("cups/label", b"", "a.ply", 400, "cups tells classes apart"),
        ("mugs/predict", b"", "a.ply", 404, "There is no adapter 'mugs'. There are cups, cups/parts."),
        ("cups/parts/predict?category=jar", b"", "a.ply", 422, "categories lamp, mug"),
    ],
)
def test_what_cannot_be_answered(client, path, content, name, status, message):
    answer = post(client, f"/adapters/{path}", content, name)
    assert answer.status_code == status
    assert message in answer.json()["detail"]
    assert "/tmp" not in answer.json()["detail"]


def test_limits_of_time_and_number(scan):
    class Slow(Predictor):
        def __init__(self):
            self.class_names = ["cup"]

        def predict(self, *arguments, **options):
            time.sleep(0.5)
            return [("cup", 1.0)]

    slow = testclient.TestClient(build_app({"slow": Slow()}, Limits(timeout=0.05)))
    answer = post(slow, "/adapters/slow/predict", scan[0].read_bytes())
    assert (answer.status_code, answer.json()["detail"]) == (504, "scan.ply: no answer within 0.05 s.")
    none = testclient.TestClient(build_app({"slow": Slow()}, Limits(max_waiting=0)))
    answer = post(none, "/adapters/slow/predict", scan[0].read_bytes())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
