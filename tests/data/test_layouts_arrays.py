"""Data sets of one's own as .h5 and .npz files of many clouds."""

import h5py
import numpy as np
import pytest

from point_peft_hf.data import PointCloudError, load_dataset


@pytest.fixture
def write_arrays(tmp_path, rng):
    """Write files of 6 clouds of 20 points, of the classes 0, 1, 2; give the arrays by the name of the file."""
    written = {}

    def write(*names, clouds="coord", classes="label", **more):
        for name in names:
            arrays = {clouds: rng.normal(size=(6, 20, 6)), classes: np.arange(6) % 3, **more}
            arrays = {key: array for key, array in arrays.items() if array is not None}
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".npz":
                np.savez(path, **arrays)
            else:
                with h5py.File(path, "w") as file:
                    for key, array in arrays.items():
                        file[key] = array
            written[name] = arrays
        return written

    return write


@pytest.mark.parametrize("clouds", ["coord", "data", "points", "xyz", "X"])
@pytest.mark.parametrize(
    "names", [("train.h5", "test.h5"), ("my_train.npz", "my_eval.npz"), ("train_set.hdf5", "val.npz")]
)
def test_splits_by_the_names_of_files(tmp_path, write_arrays, names, clouds):
    written = write_arrays(*names, clouds=clouds)
    splits = load_dataset(tmp_path)
    assert list(splits) == ["train", "test"]
    for name, dataset in zip(names, splits.values(), strict=True):
        assert dataset.class_names == ["0", "1", "2"]
        assert dataset.labels.tolist() == [0, 1, 2, 0, 1, 2]
        np.testing.assert_array_equal(dataset[4]["points"], written[name][clouds][4, :, :3].astype(np.float32))


def test_one_file_and_several_of_a_split(tmp_path, write_arrays):
    write_arrays("archive/train0.h5", "archive/train1.h5", "archive/test0.h5")
    (tmp_path / "archive/classes.txt").write_text("mug\nvase\nbowl\n")
    splits = load_dataset(tmp_path)
    assert (len(splits["train"]), len(splits["test"])) == (12, 6)
    assert splits["train"].class_names == ["mug", "vase", "bowl"]
    alone = load_dataset(tmp_path / "archive/train0.h5")
    assert (len(alone["train"]), len(alone["test"])) == (3, 3)
    assert load_dataset(tmp_path, num_points=7)["train"][0]["points"].shape == (7, 3)


def test_labels_of_points(tmp_path, write_arrays):
    parts = np.tile(np.arange(20) % 4, (6, 1))
    parts[:, 3] = -1
    write_arrays("train.h5", "test.h5", pid=parts)
    splits = load_dataset(tmp_path, parts=True)
    assert splits["train"].class_parts == [[0, 1, 2, 3]] * 3
    assert splits["train"][0]["part_labels"].tolist() == np.where(parts[0] < 0, -100, parts[0]).tolist()
    # Labels of points under the name of labels are of one category.
    write_arrays("scenes/train.npz", "scenes/test.npz", classes="label", label=parts)
    splits = load_dataset(tmp_path / "scenes", parts=True)
    assert (splits["train"].class_names, splits["train"].class_parts) == (["scenes"], [[0, 1, 2, 3]])
    write_arrays("classes/train.npz", "classes/test.npz")
    with pytest.raises(PointCloudError, match="has no label for each point"):
        load_dataset(tmp_path / "classes", parts=True)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"classes": "kind"}, "has no labels: an array called label"),
        ({"points": np.zeros((6, 20, 3))}, "both 'coord' and 'points' can be that"),
        ({"labels": np.zeros(6, int)}, "both 'label' and 'labels' can be that"),
        ({"coord": np.zeros((6, 3, 20))}, r"must be of shape .*, got \(6, 3, 20\); it looks transposed"),
        ({"label": np.arange(6) + 0.5}, "labels must be integers"),
        ({"label": np.arange(6) - 1}, "label -1 of cloud 0 is out of range"),
        ({"label": np.arange(6) + 10**6}, "classes are numbered from 0 on, got 1000005"),
        ({"pid": np.full((6, 20), 300 << 16)}, "label 19660800 is not the number of a part"),
        ({"coord": np.full((6, 20, 3), np.nan)}, "6 of 6 clouds have NaN .* drop_invalid=True such points"),
        ({"coord": np.ones((6, 20, 3))}, "6 of 6 clouds have all their points in one place"),
    ],
)
@pytest.mark.parametrize("ending", ["h5", "npz"])
def test_arrays_that_cannot_be_used(tmp_path, write_arrays, arrays, message, ending):
    write_arrays(f"train.{ending}", **arrays)
    with pytest.raises(PointCloudError, match=f"train.{ending}|{tmp_path.name}") as error:
        load_dataset(tmp_path / f"train.{ending}")
    assert error.match(message)


def test_folders_that_cannot_be_told(tmp_path, write_arrays):
    write_arrays("a/train.h5", "a/more.h5")
    with pytest.raises(PointCloudError, match="more.h5: to which split do its clouds belong"):
        load_dataset(tmp_path / "a")
    write_arrays("b/train.h5")
    for name in ("ball", "box"):
        (tmp_path / "b" / name).mkdir()
        (tmp_path / "b" / name / "0.xyz").write_text("1 2 3\n4 5 6\n")
    with pytest.raises(PointCloudError, match="several data sets; choose one with layout: arrays, folder"):
        load_dataset(tmp_path / "b")
    assert len(load_dataset(tmp_path / "b", "arrays")["train"]) == 3
    with pytest.raises(PointCloudError, match="is not of layout 'arrays'"):
        load_dataset(tmp_path / "b/ball", "arrays")


@pytest.mark.parametrize("parts", [False, True])
def test_points_that_are_left_out(tmp_path, write_arrays, rng, parts):
    clouds = rng.normal(size=(6, 20, 3))
    clouds[1, ::2], clouds[2, 1:] = np.nan, np.inf
    write_arrays("train.npz", "test.npz", coord=clouds, pid=np.tile(np.arange(20) % 4, (6, 1)) if parts else None)
    with pytest.raises(PointCloudError, match="1 of 6 clouds have NaN"):  # one point is no cloud
        load_dataset(tmp_path, parts=parts, drop_invalid=True)
    with pytest.warns(UserWarning, match="1 of 6 clouds have NaN .* skipped"):
        train = load_dataset(tmp_path, parts=parts, drop_invalid=True, skip_bad_files=True)["train"]
    assert len(train) == 5
    left = np.tile(clouds[1, 1::2], (2, 1)).astype(np.float32)
    np.testing.assert_array_equal(train[1]["points"], left)
    if parts:
        assert train[1]["part_labels"].tolist() == [1, 3] * 10
