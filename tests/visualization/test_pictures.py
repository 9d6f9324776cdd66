import subprocess
import sys

import numpy as np
import pytest

from point_peft_hf import visualization
from point_peft_hf.visualization import (
    Markers,
    PointColoring,
    plot_confusion_matrix,
    plot_features,
    plot_learning_curves,
    project_features,
    save_cloud_image,
)

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(200, 3))
HISTORY = [{"epoch": e, "loss": 2 / e, "validation_accuracy": 1 - 1 / (e + 1), "seconds": 1.0} for e in (1, 2, 3)]


def colorings():
    long_name = "a category with a name that no legend has the room for"
    yield PointColoring("part", np.arange(200) % 2, [long_name, "b"], markers=[Markers("centre", POINTS[:5])])
    yield PointColoring("many", np.arange(200) % 64, [f"group {i}" for i in range(64)])
    yield PointColoring("attention", POINTS[:, 0] ** 2, unit="%", markers=[Markers("in", POINTS[:2], on_top=True)])
    yield PointColoring("the same everywhere", np.zeros(200))


@pytest.mark.parametrize("coloring", list(colorings()), ids=lambda coloring: coloring.name)
def test_a_cloud_becomes_a_picture(coloring, tmp_path, is_picture):
    assert is_picture(save_cloud_image(POINTS, coloring, tmp_path / "new" / "cloud.png", "A title"))


def test_what_is_near_hides_what_is_far(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    # Two sheets one behind the other, seen from the front: only the near one shows.
    sheet = np.stack(np.meshgrid(np.linspace(-1, 1, 60), np.linspace(-1, 1, 60)), axis=-1).reshape(-1, 2)
    points = np.concatenate([np.column_stack([sheet, np.full(3600, z)]) for z in (-0.5, 0.5)])
    coloring = PointColoring("side", np.repeat([0, 1], 3600), ["far", "near"], colors=["#ff0000", "#0000ff"])
    file = save_cloud_image(points, coloring, tmp_path / "cloud.png", yaw=0, pitch=0)
    pixels = image.imread(file)[..., :3]
    red, blue = pixels[..., 0] - pixels[..., 2] > 0.3, pixels[..., 2] - pixels[..., 0] > 0.3
    assert blue.sum() > 50 * red.sum()


def test_principal_components_of_a_line_and_of_a_plane():
    line = np.outer([-2.0, 0.0, 1.0, 3.0], [0.6, 0.0, 0.8])
    places = project_features(line)
    assert np.allclose(places, [[-2.5, 0], [-0.5, 0], [0.5, 0], [2.5, 0]], atol=1e-12)
    plane = RNG.normal(size=(40, 2)) @ np.linalg.qr(RNG.normal(size=(5, 5)))[0][:2]
    distances = [np.linalg.norm(rows[:, None] - rows, axis=-1) for rows in (plane, project_features(plane))]
    assert np.allclose(*distances)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_features_before_and_after(method, tmp_path, is_picture):
    if method == "tsne":
        pytest.importorskip("sklearn")
    labels = np.arange(60) % 12
    features = {"before tuning": RNG.normal(size=(60, 8)), "after tuning": RNG.normal(size=(60, 16))}
    names = [f"class {index}" for index in range(12)]
    assert is_picture(plot_features(features, labels, names, tmp_path / "features.png", method=method))


def test_learning_curves_and_confusion(tmp_path, is_picture):
    assert is_picture(plot_learning_curves({"lora": HISTORY, "full": HISTORY[:2]}, tmp_path / "curves.png"))
    for count in (2, 40):
        confusion = RNG.integers(0, 30, (count, count))
        names = [f"a class with a long name {index}" for index in range(count)]
        assert is_picture(plot_confusion_matrix(confusion, names, tmp_path / "confusion.png"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: project_features(np.zeros((9, 4)), "umap"), "must be one of pca, tsne, got 'umap'"),
        (lambda: project_features(np.zeros((2, 4))), r"at least 3 clouds, got shape \(2, 4\)"),
        (lambda: plot_features({"a": np.zeros((4, 2))}, np.zeros(5, int), ["x"], "f.png"), "'a' has features of 4"),
        (lambda: plot_features({"a": np.zeros((4, 2))}, np.full(4, 1), ["x"], "f.png"), "labels of the 1 classes"),
        (lambda: plot_learning_curves({}, "f.png"), "There is no epoch to draw"),
        (lambda: plot_learning_curves({"a": [{"epoch": 1}]}, "f.png"), "must have 'epoch', 'loss'"),
        (lambda: plot_confusion_matrix(np.zeros((2, 3)), ["a", "b"], "f.png"), r"\(2, 2\), got shape \(2, 3\)"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        call()
    assert not list(tmp_path.iterdir())


def test_drawing_is_imported_only_to_draw():
    code = (
        "import sys, point_peft_hf, point_peft_hf.visualization\n"
        "assert not {'matplotlib', 'sklearn', 'gradio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install .*\[viz\]"):
        plot_learning_curves({"lora": HISTORY}, tmp_path / "curves.png")


def test_everything_public_is_there():
    assert all(hasattr(visualization, name) for name in visualization.__all__)
