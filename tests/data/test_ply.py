import numpy as np
import pytest
import trimesh

from point_peft_hf.data import PointCloudError, read_point_cloud
from point_peft_hf.data.formats.ply import read_ply

POINTS = np.array([[0, 0, 0], [1, 2, 3], [-4, 5.5, 6.25]], dtype=np.float32)


def header(kind, *lines):
    return "\n".join(["ply", f"format {kind} 1.0", "comment by hand", *lines, "end_header"]) + "\n"


XYZ = [f"property float {axis}" for axis in "xyz"]


def test_ascii_with_extra_properties_in_any_order(write):
    lines = ["element vertex 3", "property uchar red", "property double z", "property double x", "property float y"]
    body = "".join(f"7 {z} {x} {y}\n" for x, y, z in POINTS)
    np.testing.assert_array_equal(read_point_cloud(write("a.ply", header("ascii", *lines) + body)), POINTS)


@pytest.mark.parametrize(("kind", "order"), [("binary_little_endian", "<"), ("binary_big_endian", ">")])
def test_binary_with_extra_properties_and_elements(write, kind, order):
    # A list element before the vertices, and one after them that is never needed.
    lines = ["element note 2", "property list uchar int words", "element vertex 3", "property ushort id", *XYZ]
    note = b"".join(bytes([n]) + np.arange(n, dtype=order + "i4").tobytes() for n in (1, 3))
    rows = np.zeros(3, dtype=[("id", order + "u2"), ("xyz", order + "f4", 3)])
    rows["xyz"] = POINTS
    content = (
        header(kind, *lines, "element tail 1", "property int unused").encode() + note + rows.tobytes() + b"\0" * 4
    )
    np.testing.assert_array_equal(read_point_cloud(write("a.ply", content)), POINTS)


def test_windows_line_ends(write):
    text = header("ascii", "element vertex 3", *XYZ) + "".join(f"{x:g} {y:g} {z:g}\n" for x, y, z in POINTS)
    np.testing.assert_array_equal(read_point_cloud(write("a.ply", text.replace("\n", "\r\n"))), POINTS)


@pytest.mark.parametrize("encoding", ["ascii", "binary"])
def test_mesh_of_trimesh(tmp_path, encoding):
    mesh = trimesh.creation.icosphere(subdivisions=1)
    mesh.export(tmp_path / "a.ply", encoding=encoding)
    vertices, faces = read_ply(tmp_path / "a.ply")
    np.testing.assert_allclose(vertices, mesh.vertices, atol=1e-6)
    np.testing.assert_array_equal(faces, mesh.faces)


@pytest.mark.parametrize("encoding", ["ascii", "binary"])
def test_cloud_of_trimesh_with_colors(tmp_path, encoding):
    cloud = trimesh.PointCloud(POINTS.astype(np.float64), colors=np.full((3, 4), 9, np.uint8))
    (tmp_path / "a.ply").write_bytes(trimesh.exchange.ply.export_ply(cloud, encoding=encoding))
    np.testing.assert_allclose(read_point_cloud(tmp_path / "a.ply"), POINTS, atol=1e-5)


def test_polygons_of_different_sizes_become_fans(write):
    lines = [
        "element vertex 3",
        *XYZ,
        "element face 3",
        "property uchar flag",
        "property list uchar int vertex_indices",
    ]
    faces = [[0, 1, 2], [0, 1, 2, 0], [1, 2]]
    expected = [[0, 1, 2], [0, 1, 2], [0, 2, 0]]
    text = "".join(f"{x:g} {y:g} {z:g}\n" for x, y, z in POINTS)
    text += "".join(f"1 {len(face)} {' '.join(map(str, face))}\n" for face in faces)
    _, found = read_ply(write("a.ply", header("ascii", *lines) + text))
    np.testing.assert_array_equal(found, expected)
    binary = POINTS.tobytes() + b"".join(bytes([1, len(f)]) + np.array(f, "<i4").tobytes() for f in faces)
    _, found = read_ply(write("b.ply", header("binary_little_endian", *lines).encode() + binary))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header("ascii", "element vertex 3", *XYZ), "promises 3 of element 'vertex', the file holds 0"),
        (header("binary_little_endian", "element vertex 99999999999", *XYZ), "the file holds 0"),
        (header("ascii", "element vertex 1", "property float x"), "no element 'vertex' with properties x, y and z"),
        (header("ascii", "element face 1", *XYZ), "no element 'vertex'"),
        (header("ascii", "element vertex many", *XYZ), "line 4 of the header"),
        (header("ascii", "element vertex 1", "property quad x"), "line 5 of the header"),
        (header("utf8", "element vertex 1", *XYZ), "format must be"),
        ("ply\nformat ascii 1.0\n", "no 'end_header'"),
        (
            header("ascii", "element vertex 2", *XYZ) + "0 0 0\n1 one 1\n",
            "line 10: expected a number in column 2, got 'one'",
        ),
        (header("ascii", "element vertex 2", *XYZ) + "0 0 0\n1 1\n", "line 10: needs at least 3 columns"),
    ],
)
def test_broken(write, content, message):
    path = write("broken.ply", content)
    with pytest.raises(PointCloudError, match=message) as error:
        read_point_cloud(path)
    assert str(path) in str(error.value)


def test_truncated_binary(tmp_path):
    trimesh.creation.box().export(tmp_path / "a.ply")
    data = (tmp_path / "a.ply").read_bytes()
    for cut in (5, 60, 100, 200, 260):
        (tmp_path / "b.ply").write_bytes(data[:-cut])
        with pytest.raises(PointCloudError, match="truncated|end_header"):
            read_point_cloud(tmp_path / "b.ply")
