import struct
import sys
import zipfile

import h5py
import laspy
import numpy as np
import pytest
import torch
import trimesh

from point_peft_hf.data import READERS, PointCloudError, read_point_cloud, write_point_cloud
from point_peft_hf.data.formats.polygons import sample_surface
from point_peft_hf.data.part_files import read_labelled_cloud
from point_peft_hf.data.readers import read_shifted

POINTS = np.array([[0, 0, 0], [1, 2, 3], [-4, 5.5, 6.25], [1, 1, 1]], dtype=np.float32)


@pytest.mark.parametrize("suffix", [".ply", ".npy"])
def test_round_trip(tmp_path, files_under, suffix):
    path = tmp_path / "folder" / f"a{suffix}"
    write_point_cloud(path, torch.from_numpy(POINTS))
    found = read_point_cloud(path)
    np.testing.assert_array_equal(found, POINTS)
    assert found.dtype == np.float32
    write_point_cloud(path, POINTS[:2])
    assert len(read_point_cloud(path)) == 2
    assert files_under(tmp_path) == [f"folder/a{suffix}"]


@pytest.mark.parametrize("colors", [np.full((4, 3), 128, np.uint8), np.full((4, 3), 128 / 255), np.full((4, 3), 128)])
def test_colors_are_read_by_trimesh(tmp_path, colors):
    write_point_cloud(tmp_path / "a.ply", POINTS, colors)
    cloud = trimesh.load(tmp_path / "a.ply")
    np.testing.assert_allclose(cloud.vertices, POINTS)
    assert (np.asarray(cloud.colors)[:, :3] == 128).all()
    np.testing.assert_array_equal(read_point_cloud(tmp_path / "a.ply"), POINTS)


@pytest.mark.parametrize(
    ("name", "points", "colors", "message"),
    [
        ("a.xyz", POINTS, None, "written as .ply or .npy, got .xyz"),
        ("a.ply", POINTS[0], None, r"shape \(num_points, 3\), got \(3,\)"),
        ("a.ply", POINTS, POINTS[:2], "colours must be of shape"),
        ("a.ply", POINTS, POINTS, "float colours go from 0 to 1"),
        ("a.npy", POINTS, abs(POINTS), "to .ply files only"),
    ],
)
def test_write_errors_leave_nothing(tmp_path, files_under, name, points, colors, message):
    with pytest.raises(PointCloudError, match=message):
        write_point_cloud(tmp_path / name, points, colors)
    assert files_under(tmp_path) == []


def test_labels_are_written_and_wrong_ones_refused(tmp_path):
    labels = np.arange(len(POINTS)) - 1
    for name in ("a.ply", "a.npy"):
        write_point_cloud(tmp_path / name, POINTS, labels=torch.from_numpy(labels))
        read = read_labelled_cloud(tmp_path / name)
        np.testing.assert_array_equal(read[:, :3], POINTS)
        assert read[:, 3].tolist() == [-100, *labels[1:]]
        np.testing.assert_array_equal(read_point_cloud(tmp_path / name), POINTS)
    for wrong in (labels[1:], labels.astype(float)):
        with pytest.raises(PointCloudError, match="b.ply: labels must be integers of shape"):
            write_point_cloud(tmp_path / "b.ply", POINTS, labels=wrong)
    assert not (tmp_path / "b.ply").exists()


def test_failed_write_keeps_the_old_file(tmp_path, files_under, monkeypatch):
    write_point_cloud(tmp_path / "a.npy", POINTS)

    def fail(file, *args, **kwargs):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(OSError, match="No space"):
        write_point_cloud(tmp_path / "a.npy", POINTS[:2])
    np.testing.assert_array_equal(read_point_cloud(tmp_path / "a.npy"), POINTS)
    assert files_under(tmp_path) == ["a.npy"]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "i4", "u1"])
def test_npy(tmp_path, dtype):
    expected = np.array([[1, 2, 3, 9], [4, 5, 6, 9]], dtype=dtype)
    np.save(tmp_path / "a.npy", expected)
    np.testing.assert_array_equal(read_point_cloud(tmp_path / "a.npy"), [[1, 2, 3], [4, 5, 6]])
    np.save(tmp_path / "a.npy", np.asfortranarray(expected))
    np.testing.assert_array_equal(read_point_cloud(tmp_path / "a.npy"), [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    "arrays", [{"points": POINTS, "labels": np.ones(4)}, {"anything": POINTS}, {"XYZ": POINTS, "b": POINTS}]
)
def test_npz(tmp_path, arrays):
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    np.testing.assert_array_equal(read_point_cloud(tmp_path / "a.npz"), POINTS)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 500)), "looks transposed"),
        (np.zeros((8, 100, 3)), "holds 8 clouds"),
        (np.zeros(9), r"must be of shape \(num_points, 3 or more\), got \(9,\)"),
        (np.zeros((9, 2)), r"got \(9, 2\)"),
        (np.zeros((9, 3), complex), "real numbers"),
        (np.zeros((9, 3), "U1"), "real numbers"),
        (np.zeros((1, 3)), "holds 1 point;"),
        (np.zeros((0, 3)), "holds 0 points;"),
        (np.full((4, 3), 1e200), "too large for float32"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_unusable_arrays(tmp_path, array, message, suffix):
    path = tmp_path / f"a{suffix}"
    (np.save if suffix == ".npy" else np.savez)(path, array)
    with pytest.raises(PointCloudError, match=message) as error:
        read_point_cloud(path)
    assert str(path) in str(error.value)


class Trap:
    ran = False

    def __reduce__(self):
        return setattr, (Trap, "ran", True)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_objects_are_not_loaded(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    (np.save if suffix == ".npy" else np.savez)(path, np.array([Trap()], dtype=object))
    with pytest.raises(PointCloudError, match="Python objects, which are not loaded as they could run code"):
        read_point_cloud(path)
    assert not Trap.ran


def test_npz_that_is_no_archive_of_arrays(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(PointCloudError, match="a.npz"):
        read_point_cloud(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", a=POINTS, b=POINTS)
    with pytest.raises(PointCloudError, match="cannot tell which array"):
        read_point_cloud(tmp_path / "b.npz")


def test_h5(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["points"] = POINTS[None]
        file["label"] = 3
    np.testing.assert_array_equal(read_point_cloud(tmp_path / "a.h5"), POINTS)


def test_h5_reads_no_other_file(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(120))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["points"] = POINTS
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["points"] = h5py.ExternalLink("other.h5", "points")
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file.create_dataset("points", (10, 3), "f4", external=[(str(tmp_path / "secret"), 0, 120)])
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout((4, 3), "f4")
        layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "points", (4, 3))
        file.create_virtual_dataset("points", layout)
    for name in ("link.h5", "external.h5", "virtual.h5"):
        with pytest.raises(PointCloudError, match=f"{name}: .*(other files|cannot tell)"):
            read_point_cloud(tmp_path / name)


@pytest.mark.parametrize("suffix", [".las", ".laz"])
def test_las_in_a_national_grid(tmp_path, suffix):
    if suffix == ".laz":
        pytest.importorskip("lazrs")
    points = np.array([[500000.125, 4000000.25, 10], [500001.5, 4000002.5, 11.75], [500003, 4000000.5, 12]])
    header = laspy.LasHeader(point_format=3, version="1.2")
    header.scales, header.offsets = [0.001] * 3, points.min(axis=0)
    las = laspy.LasData(header)
    las.xyz = points
    las.write(tmp_path / f"a{suffix}")
    with pytest.warns(UserWarning, match="far from the origin are shifted"):
        found = read_point_cloud(tmp_path / f"a{suffix}")
    np.testing.assert_allclose(found, points - [500000, 4000000, 10], atol=1e-3)


@pytest.mark.parametrize("suffix", [".ply", ".npy"])
def test_coordinates_far_from_the_origin_are_written_in_double_precision(tmp_path, rng, suffix):
    near, path = rng.uniform(size=(20, 3)), tmp_path / f"a{suffix}"
    near[0] = 0
    write_point_cloud(path, near + [350000, 5600000, 100], labels=np.arange(20))
    with pytest.warns(UserWarning, match="shifted"):
        np.testing.assert_allclose(read_point_cloud(path), near, atol=1e-6)
    points, shift = read_shifted(path)
    np.testing.assert_allclose(points + shift, near + [350000, 5600000, 100], rtol=0, atol=1e-6)
    with pytest.warns(UserWarning, match="shifted"):
        np.testing.assert_array_equal(read_labelled_cloud(path)[:, 3], np.arange(20))
    # Others are as they were.
    write_point_cloud(path, near + 100)
    assert path.stat().st_size < 20 * 12 + 200
    np.testing.assert_array_equal(read_shifted(path)[1], np.zeros(3))


def test_small_clouds_are_not_shifted(tmp_path, recwarn):
    np.save(tmp_path / "a.npy", POINTS.astype(np.float64) + 100)
    np.testing.assert_array_equal(read_point_cloud(tmp_path / "a.npy"), POINTS + 100)
    assert not recwarn.list


@pytest.mark.parametrize("suffix", [".obj", ".stl", ".glb", ".off", ".ply"])
def test_meshes_are_sampled_on_the_surface(tmp_path, suffix):
    path = tmp_path / f"box{suffix}"
    trimesh.creation.box(extents=(1, 2, 4)).export(path)
    points = read_point_cloud(path, num_points=3000)
    assert points.shape == (3000, 3)
    distance = abs(points) - [0.5, 1, 2]
    np.testing.assert_allclose(distance.max(axis=1), 0, atol=1e-6)  # on the box, neither within nor without
    # Each pair of sides has its share of the points: 2 * 4, 1 * 4 and 1 * 2 of 14.
    share = np.bincount(distance.argmax(axis=1), minlength=3) / 3000
    np.testing.assert_allclose(share, np.array([8, 4, 2]) / 14, atol=0.03)
    np.testing.assert_array_equal(points, read_point_cloud(path, num_points=3000))
    assert not np.array_equal(points, read_point_cloud(path, num_points=3000, seed=1))
    assert read_point_cloud(path).shape == (8192, 3)


def test_parts_of_a_scene_are_in_their_places(tmp_path):
    scene = trimesh.Scene([trimesh.creation.box()])
    scene.add_geometry(trimesh.creation.box(), transform=trimesh.transformations.translation_matrix([10, 0, 0]))
    scene.export(tmp_path / "a.glb")
    points = read_point_cloud(tmp_path / "a.glb")
    np.testing.assert_allclose([points.min(axis=0), points.max(axis=0)], [[-0.5] * 3, [10.5, 0.5, 0.5]], atol=0.05)
    assert 0.45 < (points[:, 0] > 5).mean() < 0.55


def test_surface_within_a_triangle():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [9, 9, 9]])
    faces = np.array([[0, 1, 2], [3, 3, 3]])  # the second one has no area and gets no point
    points = sample_surface(vertices, faces, 20000, np.random.default_rng(0))
    assert (points >= 0).all()
    assert (points.sum(axis=1) <= 1 + 1e-12).all()
    np.testing.assert_allclose(points.mean(axis=0), [1 / 3, 1 / 3, 0], atol=0.01)


def test_obj_variants(write):
    square = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"
    for faces in (
        "f 1 2 3 4\n",
        "f -4/1/1 -3/1/1 -2/1/1 -1/1/1\n",
        "usemtl wood\nf 1//1 2//1 3//1\nf 1//1 3//1 4//1\n",
    ):
        points = read_point_cloud(write("a.obj", "mtllib none.mtl\n" + square + faces), num_points=500)
        assert points.min() >= 0
        assert points.max() <= 1
        np.testing.assert_allclose(points.mean(axis=0), [0.5, 0.5, 0], atol=0.05)
    np.testing.assert_array_equal(
        read_point_cloud(write("b.obj", square)), [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    )
    assert len(read_point_cloud(write("c.obj", ("# gr\xfc\xdfe\n" + square + "f 1 2 3\n").encode("latin-1")))) == 8192


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.obj", "v 0 0 0\nv 1 0 0\nv 1 1 0\nf 1 2 9\n", "not a readable .obj mesh"),
        ("a.obj", "v 0 0 0\nv 1 0 a\n", "line 2: expected 'v x y z'"),
        ("a.obj", "v 0 0 0\nv 0 0 0\nv 0 0 1\nf 1 2 3\n", "no area"),
        ("a.obj", "v 0 0 0\nv nan 0 0\nv 0 0 1\nf 1 2 3\n", "1 of 3 vertices have NaN"),
        ("a.obj", "hello\n", "holds no mesh"),
        ("a.obj", bytes(range(256)), "not a readable"),
        ("a.stl", bytes(range(256)), "its header promises"),
        ("a.stl", "solid nothing\nendsolid\n", "not a readable .stl mesh"),
        ("a.glb", b"glTF" + bytes(60), "not a readable .glb mesh"),
        ("a.las", b"LASF" + bytes(60), "not a readable .las file"),
        ("a.laz", b"hello", "not a readable .laz file"),
        ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(60), "not a readable HDF5 file"),
        ("a.npz", b"PK\3\4" + bytes(60), "not a readable .npz file"),
        ("a.npy", b"\x93NUMPY\1\0\x10\0{'descr': oops}\n", "not a readable .npy file"),
        ("a.npy", b"\x93NUMPY\1\0\x10\0{'descr': '<f8'(\n", "not a readable .npy file: .*EOF"),
        ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 0\nf 1 2 3\n", "line 3: expected 'v x y z', got 'v 0 0'"),
        ("a.obj", "v 0\nv 1\nv 0\nf 1 2 3\n", "line 1: expected 'v x y z', got 'v 0'"),
    ],
)
def test_broken(write, name, content, message):
    if name == "a.laz":
        pytest.importorskip("lazrs")
    path = write(name, content)
    with pytest.raises(PointCloudError, match=message) as error:
        read_point_cloud(path)
    assert str(path) in str(error.value)


def test_damaged_text_of_a_glb_is_no_missing_library(tmp_path):
    path = tmp_path / "a.glb"
    trimesh.creation.box().export(path)
    data = path.read_bytes()
    path.write_bytes(data[:30] + b"\xff\xfe" + data[32:])
    with pytest.raises(PointCloudError, match="a.glb: not a readable .glb mesh: .*damaged"):
        read_point_cloud(path)


@pytest.mark.parametrize("error", [KeyError("x"), IndexError("x"), TypeError("x"), struct.error("x"), ValueError("x")])
def test_whatever_a_reader_stumbles_over_names_the_file(write, monkeypatch, error):
    def fail(path):
        raise error

    path = write("a.xyz", "1 2 3\n4 5 6\n")
    write("a.seg", "0\n1\n")
    monkeypatch.setitem(READERS, ".xyz", fail)
    for read in (read_point_cloud, read_labelled_cloud):
        with pytest.raises(PointCloudError, match=f"a.xyz: cannot be read; broken. {type(error).__name__}: "):
            read(path)


@pytest.mark.parametrize("suffix", sorted(READERS))
def test_empty_and_random_bytes(write, rng, suffix):
    if suffix == ".laz":
        pytest.importorskip("lazrs")
    with pytest.raises(PointCloudError, match=rf"empty{suffix}: is empty \(0 bytes\)"):
        read_point_cloud(write(f"empty{suffix}", b""))
    for size in (1, 3, 100, 3000):
        path = write(f"random{suffix}", rng.integers(0, 256, size, dtype=np.uint8).tobytes())
        with pytest.raises(PointCloudError, match=f"random{suffix}"):
            read_point_cloud(path)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5", ".las", ".laz", ".stl", ".glb", ".off", ".ply"])
def test_truncated(tmp_path, rng, suffix):
    path = tmp_path / f"a{suffix}"
    points = rng.normal(size=(500, 3))
    if suffix == ".npy":
        np.save(path, points)
    elif suffix == ".npz":
        np.savez(path, points)
    elif suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["points"] = points
    elif suffix in (".las", ".laz"):
        pytest.importorskip("laspy" if suffix == ".las" else "lazrs")
        las = laspy.create()
        las.xyz = points
        las.write(path)
    else:
        trimesh.creation.icosphere().export(path)
    assert len(read_point_cloud(path)) >= 500
    data = path.read_bytes()
    for share in (0.2, 0.6, 0.95):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(PointCloudError, match=f"a{suffix}"):
            read_point_cloud(path)


def test_wrong_names(write, tmp_path):
    for name, message in (
        ("none.ply", "no such file"),
        (".", "is a folder; .* load_dataset"),
    ):
        with pytest.raises(PointCloudError, match=message):
            read_point_cloud(tmp_path / name)
    with pytest.raises(PointCloudError, match="files ending with .docx are not read; readable are .asc, .bin, .csv"):
        read_point_cloud(write("a.docx", "x"))
    with pytest.raises(PointCloudError, match="files ending with nothing"):
        read_point_cloud(write("a", "x"))
    write_point_cloud(tmp_path / "a.ply", POINTS)
    (tmp_path / "a.ply").rename(tmp_path / "a.pcd")
    with pytest.raises(PointCloudError, match="its content is that of a .ply file; rename it"):
        read_point_cloud(tmp_path / "a.pcd")
    write_point_cloud(tmp_path / "b.npy", POINTS)
    (tmp_path / "b.npy").rename(tmp_path / "b.NPY")
    np.testing.assert_array_equal(read_point_cloud(tmp_path / "b.NPY"), POINTS)
    with pytest.raises(ValueError, match="num_points must be at least 1, got 0"):
        read_point_cloud(tmp_path / "b.NPY", num_points=0)


def test_ten_million_points(tmp_path):
    points = np.lib.format.open_memmap(tmp_path / "a.npy", mode="w+", dtype=np.float32, shape=(10_000_000, 3))
    points[-1] = 7
    points.flush()
    found = read_point_cloud(tmp_path / "a.npy")
    assert found.shape == (10_000_000, 3)
    assert (found[-1] == 7).all()


@pytest.mark.parametrize(("module", "suffix"), [("laspy", ".las"), ("h5py", ".h5")])
def test_missing_library_names_the_extra(write, monkeypatch, module, suffix):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"needs {module}: pip install .*\[io\]"):
        read_point_cloud(write(f"a{suffix}", "v 0 0 0\n"))
