"""Arrays with named fields, transposed, of many clouds, or of something other than a surface."""

import h5py
import numpy as np
import pytest

from point_peft_hf.data import PointCloudError, PointCloudProcessor, read_point_cloud, write_point_cloud
from point_peft_hf.data.part_files import read_labelled_cloud

POINTS = np.array([[1.5, 2.25, 3.125], [-4.5, 5.5, 6.75], [7.25, -8.5, 9.5], [0.5, 0.25, -1.5]])
MANY = np.random.default_rng(0).normal(size=(2048, 3))
LABELS = np.array([0, 1, 0, 3])
SQUARE = np.array([[0, 0, 0], [2, 0, 0], [2, 1, 0], [0, 1, 0]], dtype=float)


def structured(points=POINTS, names="xyz", kind="<f4", **more):
    fields = [(name, kind) for name in names] + [(name, values.dtype) for name, values in more.items()]
    array = np.zeros(len(points), fields)
    for column, name in enumerate(names):
        array[name] = points[:, column]
    for name, values in more.items():
        array[name] = values
    return array


def save(path, **arrays):
    """Write arrays as .npy, .npz or .h5."""
    if path.suffix == ".npy":
        np.save(path, next(iter(arrays.values())))
    elif path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            file.update(arrays)
    return path


SUFFIXES = pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])


@SUFFIXES
@pytest.mark.parametrize("channels", [3, 4, 5, 6, 7, 9])
@pytest.mark.parametrize("number", [10, 2048])
def test_one_row_a_channel_is_refused(tmp_path, suffix, channels, number):
    array = np.resize(MANY.T, (channels, number))
    for wrong in (array, array[None], np.asfortranarray(array), array.astype(np.float32)):
        with pytest.raises(PointCloudError, match=rf"\({channels}, {number}\): it looks transposed; save array.T"):
            read_point_cloud(save(tmp_path / f"a{suffix}", points=wrong))
    with pytest.raises(PointCloudError, match="looks transposed"):
        PointCloudProcessor(num_points=8)(array)


@SUFFIXES
@pytest.mark.parametrize("shape", [(2, 4), (3, 7), (4, 6), (8, 8), (12, 9)])
def test_few_points_with_many_columns_are_a_cloud(tmp_path, suffix, shape):
    array = np.arange(np.prod(shape), dtype=float).reshape(shape)
    np.testing.assert_array_equal(read_point_cloud(save(tmp_path / f"a{suffix}", points=array)), array[:, :3])


@SUFFIXES
@pytest.mark.parametrize(
    "array",
    [
        structured(),
        structured(names="XYZ", kind=">f8"),
        structured(POINTS[:, ::-1], "zyx", intensity=LABELS),
        structured().reshape(2, 2),
        np.array([(point, 1) for point in POINTS], [("xyz", "f4", 3), ("ring", "u1")]),
        POINTS[None],
        POINTS[None].astype("f2"),
    ],
)
def test_fields_and_a_single_cloud(tmp_path, suffix, array):
    np.testing.assert_array_equal(read_point_cloud(save(tmp_path / f"a{suffix}", points=array)), POINTS)


@SUFFIXES
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (structured(names="abc"), "no fields x, y and z, one number each; it has .'a', 'b', 'c'"),
        (structured(names=["nx", "ny", "nz"]), "no fields x, y and z"),
        (np.zeros(4, [("x", "f4", 2), ("y", "f4", 2), ("z", "f4", 2)]), "no fields x, y and z"),
        (np.zeros((8, 100, 3)), r"\(8, 100, 3\) holds 8 clouds, or one organised as an image; .*reshape\(-1, 3\)"),
        (np.zeros((8, 3, 100)), "holds 8 clouds"),
    ],
)
def test_refused(tmp_path, suffix, array, message):
    with pytest.raises(PointCloudError, match=message):
        read_point_cloud(save(tmp_path / f"a{suffix}", points=array))


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize(
    "arrays",
    [
        {"coord": POINTS, "color": POINTS, "normal": POINTS},
        {"coordinates": POINTS, "a": POINTS},
        {"x": POINTS[:, 0], "y": POINTS[:, 1], "z": POINTS[:, 2]},
        {"POINT_CLOUD": POINTS, "normals": POINTS},
    ],
)
def test_names(tmp_path, suffix, arrays):
    np.testing.assert_array_equal(read_point_cloud(save(tmp_path / f"a{suffix}", **arrays)), POINTS)


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize(
    "arrays",
    [
        {"vertices": SQUARE, "faces": np.array([[0, 1, 2], [0, 2, 3]])},
        {"verts": SQUARE, "triangles": np.array([[0, 1, 2, 3]], np.uint16)},
        {"points": structured(SQUARE), "mesh": structured(np.array([[0, 1, 2], [0, 2, 3]]), ["v1", "v2", "v3"], "i4")},
    ],
)
def test_vertices_with_faces_are_sampled(tmp_path, suffix, arrays):
    points = read_point_cloud(save(tmp_path / f"a{suffix}", **arrays), num_points=2000)
    assert points.shape == (2000, 3)
    np.testing.assert_allclose(points.mean(axis=0), [1, 0.5, 0], atol=0.05)


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pos": np.ones((50, 4)), "neg": np.ones((50, 4))}, "has an array 'neg', .* samples of the space around"),
        ({"points": MANY, "occupancies": np.zeros(256, np.uint8)}, "has an array 'occupancies'"),
        ({"points": MANY, "sdf": MANY[:, 0]}, "has an array 'sdf'"),
        ({"vertices": SQUARE, "faces": np.array([[0, 1, 9]])}, "a face names vertex 9, and the file has 4 vertices"),
        ({"vertices": SQUARE, "faces": np.ones((2, 3))}, "must hold the vertices of faces, whole numbers"),
        ({"x": np.zeros(4), "y": np.zeros(4), "z": np.zeros(3)}, "x, y and z must be of one shape"),
        ({"poses": np.zeros((9, 72)), "trans": np.zeros((9, 3))}, "cannot tell which array"),
        ({"points": np.zeros((5, 100, 3)), "labels": np.zeros(5)}, "holds 5 clouds"),
    ],
)
def test_other_meanings_are_refused(tmp_path, suffix, arrays, message):
    with pytest.raises(PointCloudError, match=rf"a{suffix}: .*{message}"):
        read_point_cloud(save(tmp_path / f"a{suffix}", **arrays))


def test_arrays_one_after_the_other_in_a_file(tmp_path):
    with open(tmp_path / "a.npy", "wb") as file:
        np.save(file, POINTS)
        np.save(file, POINTS)
    with pytest.raises(PointCloudError, match=r"an array of shape \(4, 3\), and .* bytes follow it"):
        read_point_cloud(tmp_path / "a.npy")


def test_an_array_of_zeros_that_is_not_stored(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("points", (10**9, 3), "f4", chunks=(1000, 3))
    with pytest.raises(PointCloudError, match="cannot be read: float32 of shape .1000000000, 3."):
        read_point_cloud(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("a.npy", {"a": structured(label=LABELS)}),
        ("a.npy", {"a": structured(scalar_Classification=LABELS.astype("u1"))}),
        ("a.npy", {"a": np.column_stack([POINTS, LABELS])}),
        ("a.npy", {"a": np.column_stack([POINTS, LABELS])[None]}),
        ("a.npz", {"points": POINTS, "semantic": LABELS}),
        ("a.npz", {"points": POINTS, "Segmentation": LABELS[:, None]}),
        ("a.npz", {"points": structured(part=LABELS)}),
        ("a.h5", {"coord": POINTS, "segment": LABELS}),
        ("a.h5", {"points": structured(label=LABELS)}),
    ],
)
def test_labels(tmp_path, name, arrays):
    read = read_labelled_cloud(save(tmp_path / name, **arrays))
    np.testing.assert_array_equal(read[:, :3], POINTS)
    assert read[:, 3].tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("a.npy", {"a": np.column_stack([MANY, np.arange(2048) % 255])}, "column 4, which has no name and 255"),
        ("a.npy", {"a": structured(intensity=LABELS)}, "no field is named as labels are"),
        ("a.npy", {"a": structured(label=LABELS, segment=LABELS)}, "which field holds the labels, label or segment"),
        ("a.npz", {"points": POINTS, "label": LABELS, "semantic": LABELS}, "which array holds the labels"),
        ("a.h5", {"points": POINTS, "label": np.zeros((4, 2))}, r"must be of shape \(num_points,\), got \(4, 2\)"),
        ("a.npz", {"points": POINTS, "label": np.array(3)}, r"must be of shape \(num_points,\), got \(\)"),
    ],
)
def test_labels_that_are_none(tmp_path, name, arrays, message):
    with pytest.raises(PointCloudError, match=message):
        read_labelled_cloud(save(tmp_path / name, **arrays))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "label", [0, 2**24 - 1, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2621440010, 2**53, 2**53 + 1, -(2**40)]
)
def test_labels_are_written_exactly_or_refused(tmp_path, dtype, label):
    labels = np.array([label, 1, 0, 0], np.int64)
    for name, low, high in (("a.ply", -(2**31), 2**31 - 1), ("a.npy", -(2**53), 2**53)):
        if not low <= label <= high:
            with pytest.raises(PointCloudError, match=f"labels go from .* keeps {low} to {high}"):
                write_point_cloud(tmp_path / name, POINTS.astype(dtype), labels=labels)
            continue
        write_point_cloud(tmp_path / name, POINTS.astype(dtype), labels=labels)
        data = (tmp_path / name).read_bytes()
        found = (
            np.load(tmp_path / name)[0, 3] if name == "a.npy" else int.from_bytes(data[-52:-48], "little", signed=True)
        )
        assert int(found) == label
        np.testing.assert_array_equal(read_point_cloud(tmp_path / name), POINTS)


def blurred(kind):
    near = np.random.default_rng(0).normal(size=(500, 3)) + [500000, 5400000, 100]
    return near.astype(kind)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.h5", "a.ply", "a.xyz", "mesh.obj"])
def test_what_float32_has_blurred_is_told(tmp_path, name):
    points, path = blurred("f4"), tmp_path / name
    if name == "mesh.obj":
        lines = [f"v {x!r} {y!r} {z!r}" for x, y, z in points.tolist()] + [
            f"f {i} {i + 1} {i + 2}" for i in range(1, 498)
        ]
        path.write_text("\n".join(lines))
    elif name == "a.xyz":
        np.savetxt(path, points, "%.6f")
    elif name == "a.ply":
        header = "".join(f"property double {axis}\n" for axis in "xyz")
        path.write_bytes(
            f"ply\nformat binary_little_endian 1.0\nelement vertex 500\n{header}end_header\n".encode()
            + points.astype("<f8").tobytes()
        )
    else:
        save(path, points=points)
    with pytest.warns(UserWarning, match="float32, in which they were saved, has lost the shape"):
        read_point_cloud(path)


def test_what_is_exact_is_not_told(tmp_path, recwarn):
    for far in (blurred("f8"), np.round(blurred("f8")), np.round(blurred("f8"), 2)):
        read_point_cloud(save(tmp_path / "a.npy", a=far))
        np.savetxt(tmp_path / "a.xyz", far, "%.3f")
        read_point_cloud(tmp_path / "a.xyz")
    read_point_cloud(save(tmp_path / "a.npy", a=blurred("f4") - np.float32([500000, 5400000, 0])))
    assert not [warning for warning in recwarn if "has lost the shape" in str(warning.message)]
