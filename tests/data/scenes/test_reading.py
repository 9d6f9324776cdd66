import laspy
import numpy as np
import pytest

from point_peft_hf.data import PointCloudError, write_point_cloud
from point_peft_hf.data.scenes import read_scene

from .conftest import write_room

POINTS = np.random.default_rng(0).uniform(0, 3, (40, 3)).round(3)
COLORS = np.random.default_rng(1).integers(2, 256, (40, 3))
LABELS = np.arange(40) % 4
NORMALS = np.array([[0.6, 0.0, 0.8]] * 40)


def write_las(path, point_format=7, colors=COLORS * 257, classes=LABELS, offset=(0, 0, 0)):
    header = laspy.LasHeader(point_format=point_format, version="1.4")
    header.scales, header.offsets = [0.001] * 3, offset
    las = laspy.LasData(header)
    las.xyz = POINTS + offset
    if colors is not None:
        las.red, las.green, las.blue = colors.T
    las.classification = classes
    las.write(path)
    return path


def write_columns(path, *, header=None, columns=(POINTS, COLORS, LABELS[:, None])):
    table = np.column_stack(columns)
    if path.suffix == ".npy":
        np.save(path, table)
    else:
        np.savetxt(
            path, table, fmt="%.4f", header=header or "", comments="", delimiter="," if path.suffix == ".csv" else " "
        )
    return path


@pytest.mark.parametrize("suffix", [".las", ".laz"])
def test_las(tmp_path, suffix):
    scene = read_scene(write_las(tmp_path / f"scan{suffix}", offset=(450_000, 5_700_000, 100)))
    np.testing.assert_allclose(scene.points + scene.origin, POINTS + [450_000, 5_700_000, 100], atol=1e-3)
    assert scene.points.max() < 5
    assert scene.points.dtype == np.float32
    np.testing.assert_array_equal(scene.colors, COLORS)
    np.testing.assert_array_equal(scene.labels, LABELS)


@pytest.mark.parametrize("colors", [COLORS, COLORS * 257])
def test_las_colors_of_8_bits_are_understood(tmp_path, colors):
    np.testing.assert_array_equal(read_scene(write_las(tmp_path / "a.las", colors=colors)).colors, COLORS)


def test_las_without_colors_and_classes(tmp_path):
    scene = read_scene(write_las(tmp_path / "a.las", colors=COLORS * 0, classes=LABELS * 0))
    assert scene.colors is None
    assert scene.labels is None
    assert read_scene(write_las(tmp_path / "b.las", point_format=6, colors=None)).colors is None
    with pytest.raises(PointCloudError, match="no dimension 'species' for the labels; it has.*classification"):
        read_scene(tmp_path / "a.las", label_name="species")


def test_las_labels_of_another_dimension(tmp_path):
    write_las(tmp_path / "a.las")
    np.testing.assert_array_equal(read_scene(tmp_path / "a.las", label_name="user_data").labels, LABELS * 0)


def test_ply(tmp_path):
    write_point_cloud(tmp_path / "a.ply", POINTS.astype(np.float32), COLORS, LABELS)
    scene = read_scene(tmp_path / "a.ply")
    np.testing.assert_allclose(scene.points, POINTS, atol=1e-6)
    np.testing.assert_array_equal(scene.colors, COLORS)
    np.testing.assert_array_equal(scene.labels, LABELS)
    assert read_scene(tmp_path / "a.ply", labels=False).labels is None


@pytest.mark.parametrize("kind", ["F", "U"])
def test_packed_colors_of_a_pcd(tmp_path, kind):
    packed = (COLORS[:, 0] << 16 | COLORS[:, 1] << 8 | COLORS[:, 2]).astype("<u4")
    header = f"VERSION 0.7\nFIELDS x y z rgb label\nSIZE 4 4 4 4 4\nTYPE F F F {kind} U\nCOUNT 1 1 1 1 1\nWIDTH 40\n"
    header += "HEIGHT 1\nPOINTS 40\nDATA binary\n"
    rows = np.zeros(40, [("xyz", "<f4", 3), ("rgb", "<u4"), ("label", "<u4")])
    rows["xyz"], rows["rgb"], rows["label"] = POINTS, packed, LABELS
    (tmp_path / "a.pcd").write_bytes(header.encode() + rows.tobytes())
    scene = read_scene(tmp_path / "a.pcd")
    np.testing.assert_array_equal(scene.colors, COLORS)
    np.testing.assert_array_equal(scene.labels, LABELS)


def test_several_labels_are_chosen_by_name(write):
    file = write("a.csv", "x,y,z,label,class\n1,2,3,4,5\n2,3,4,5,6\n")
    with pytest.raises(
        PointCloudError, match="which column holds the labels, label or class; choose it with label_name"
    ):
        read_scene(file)
    assert read_scene(file, label_name="Class").labels.tolist() == [5, 6]


def test_normals_of_a_ply_get_length_1(write):
    header = "ply\nformat ascii 1.0\nelement vertex 2\n"
    header += "".join(f"property float {name}\n" for name in ("x", "y", "z", "nx", "ny", "nz")) + "end_header\n"
    scene = read_scene(write("a.ply", header + "0 0 0 0 0 2\n1 1 1 3 0 4\n"))
    np.testing.assert_allclose(scene.normals, [[0, 0, 1], [0.6, 0, 0.8]])


@pytest.mark.parametrize("name", ["a.txt", "a.csv"])
def test_header_names_columns(tmp_path, name):
    header = "x y z red green blue label"
    file = write_columns(tmp_path / name, header=header.replace(" ", ",") if name == "a.csv" else header)
    scene = read_scene(file)
    np.testing.assert_array_equal(scene.colors, COLORS)
    np.testing.assert_array_equal(scene.labels, LABELS)


@pytest.mark.parametrize("name", ["a.txt", "a.npy"])
def test_declared_columns(tmp_path, name):
    file = write_columns(tmp_path / name)
    scene = read_scene(file, columns="x y z red green blue label")
    np.testing.assert_array_equal(scene.colors, COLORS)
    np.testing.assert_array_equal(scene.labels, LABELS)
    with pytest.raises(PointCloudError, match="7 columns.*'x y z red green blue label' or 'x y z intensity red"):
        read_scene(file)
    with pytest.raises(PointCloudError, match="has 7 columns, but 6 are declared"):
        read_scene(file, columns="x y z red green blue")


@pytest.mark.parametrize(
    ("columns", "parts"),
    [
        ((POINTS,), set()),
        ((POINTS, LABELS[:, None]), {"labels"}),
        ((POINTS, COLORS), {"colors"}),
        ((POINTS, NORMALS), {"normals"}),
        ((POINTS, NORMALS, LABELS[:, None]), {"normals", "labels"}),
        ((POINTS, COLORS, NORMALS), {"colors", "normals"}),
        ((POINTS, COLORS, NORMALS, LABELS[:, None]), {"colors", "normals", "labels"}),
    ],
)
def test_columns_without_names_by_their_numbers(tmp_path, columns, parts):
    scene = read_scene(write_columns(tmp_path / "a.npy", columns=columns))
    assert {name for name in ("colors", "normals", "labels") if getattr(scene, name) is not None} == parts
    if "colors" in parts:
        np.testing.assert_array_equal(scene.colors, COLORS)
    if "labels" in parts:
        np.testing.assert_array_equal(scene.labels, LABELS)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ((POINTS, POINTS), "cannot tell what its 6 columns are"),
        ((POINTS, POINTS[:, :1]), "fourth column is the label or an intensity"),
        ((POINTS, COLORS, POINTS[:, :2]), "cannot tell what its 8 columns are"),
    ],
)
def test_doubtful_columns_are_refused(tmp_path, columns, message):
    with pytest.raises(PointCloudError, match=message):
        read_scene(write_columns(tmp_path / "a.npy", columns=columns))


def test_arrays_and_label_files(tmp_path):
    np.savez(tmp_path / "a.npz", points=POINTS, colors=COLORS / 255, normals=NORMALS, label=LABELS)
    scene = read_scene(tmp_path / "a.npz")
    np.testing.assert_array_equal(scene.colors, COLORS)
    np.testing.assert_array_equal(scene.labels, LABELS)
    np.save(tmp_path / "b.npy", POINTS)
    np.savetxt(tmp_path / "b.seg", LABELS, "%d")
    np.testing.assert_array_equal(read_scene(tmp_path / "b.npy").labels, LABELS)
    fields = np.zeros(
        40, [("x", "f4"), ("y", "f4"), ("z", "f4"), ("r", "u1"), ("g", "u1"), ("b", "u1"), ("class", "i4")]
    )
    fields["x"], fields["r"], fields["class"] = POINTS[:, 0], COLORS[:, 0], LABELS
    np.save(tmp_path / "c.npy", fields)
    scene = read_scene(tmp_path / "c.npy")
    np.testing.assert_array_equal(scene.colors[:, 0], COLORS[:, 0])
    np.testing.assert_array_equal(scene.labels, LABELS)


def test_bin_needs_its_columns(tmp_path):
    np.column_stack([POINTS, COLORS]).astype("<f4").tofile(tmp_path / "a.bin")
    np.testing.assert_array_equal(read_scene(tmp_path / "a.bin", columns="x y z red green blue").colors, COLORS)
    with pytest.raises(PointCloudError, match="declare them, as in columns='x y z intensity'"):
        read_scene(tmp_path / "a.bin")
    with pytest.raises(PointCloudError, match="not a whole number of points of 7 float32"):
        read_scene(tmp_path / "a.bin", columns="x y z a b c d")


def test_pointcept_folder(tmp_path):
    for name, array in (("coord", POINTS), ("color", COLORS), ("normal", NORMALS), ("segment20", LABELS[:, None])):
        np.save(tmp_path / f"{name}.npy", array)
    for path in (tmp_path, tmp_path / "coord.npy"):
        scene = read_scene(path)
        np.testing.assert_array_equal(scene.colors, COLORS)
        np.testing.assert_array_equal(scene.labels, LABELS)
    np.save(tmp_path / "segment200.npy", LABELS + 7)
    with pytest.raises(PointCloudError, match="both.*segment20.npy and .*segment200.npy can hold its labels"):
        read_scene(tmp_path)
    np.testing.assert_array_equal(read_scene(tmp_path, label_name="segment200").labels, LABELS + 7)
    with pytest.raises(PointCloudError, match="has no instance.npy for the labels"):
        read_scene(tmp_path, label_name="instance")


def test_room_of_s3dis(tmp_path):
    room = tmp_path / "office_1"
    write_room(room, {"wall_1": POINTS, "chair_1": POINTS + 5, "chair_2": POINTS + 9, "stairs_1": POINTS})
    scene = read_scene(room, class_names=("wall", "chair", "clutter"))
    names = ["chair", "chair", "clutter", "wall"]  # files by name; published results count stairs as clutter
    np.testing.assert_array_equal(scene.labels, np.repeat([("wall", "chair", "clutter").index(n) for n in names], 40))
    assert (scene.colors == 100).all()
    assert read_scene(room).labels is None
    assert len(read_scene(room)) == 160


def test_folders_that_are_no_scene(tmp_path):
    with pytest.raises(PointCloudError, match="a folder is a scene if it has coord.npy"):
        read_scene(tmp_path)
    with pytest.raises(PointCloudError, match="no such file"):
        read_scene(tmp_path / "a.ply")


def test_invalid_points(tmp_path):
    points = POINTS.copy()
    points[[3, 7], 1] = np.nan
    file = write_columns(tmp_path / "a.npy", columns=(points, COLORS))
    with pytest.raises(
        PointCloudError, match="2 of 40 points have NaN or infinite coordinates, the first is number 3"
    ):
        read_scene(file)
    scene = read_scene(file, drop_invalid=True)
    np.testing.assert_array_equal(scene.colors, np.delete(COLORS, [3, 7], axis=0))


@pytest.mark.parametrize(
    "declared", [("scannet_6_columns.bin", "x y z red green blue"), ("kitti_4_columns.bin", "x y z i")]
)
def test_real_frames(real_scenes, declared):
    name, columns = declared
    scene = read_scene(real_scenes / "samples" / name, columns=columns)
    assert len(scene) > 10_000
    assert (scene.colors is not None) == ("red" in columns)
