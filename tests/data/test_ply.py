import numpy as np
import pytest
import trimesh

from point_peft_hf.data import PointCloudError, read_point_cloud
from point_peft_hf.data.formats.ply import read_ply
from point_peft_hf.data.part_files import read_labelled_cloud

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


VERTEX = ["element vertex 3", *XYZ]
ROWS = "".join(f"{x:g} {y:g} {z:g}\n" for x, y, z in POINTS)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("mark", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("name", "kind"), [("int64", "i8"), ("uint64", "u8"), ("FLOAT", "f4"), ("Float64", "f8"), ("float16", "f2")]
)
def test_types_and_line_ends(write, order, mark, name, kind):
    points = np.abs(POINTS).round()
    text = header(
        "binary_little_endian" if order == "<" else "binary_big_endian",
        "element vertex 3",
        *(f"property {name} {axis}" for axis in "xyz"),
    )
    # The first byte of the body is that of a line feed.
    points[0, 0] = 10
    content = text.replace("\n", mark).encode() + points.astype(order + kind).tobytes()
    np.testing.assert_array_equal(read_point_cloud(write("a.ply", content)), points)


@pytest.mark.parametrize(
    "text",
    [
        header("ascii", *VERTEX).replace("\n", "\r") + ROWS.replace("\n", "\r"),
        (header("ascii", *VERTEX) + ROWS)
        .replace("ply", "PLY")
        .replace("element", "Element")
        .replace("float", "Float"),
        (header("ascii", *VERTEX).upper() + ROWS),
        "\ufeff" + header("ascii", *VERTEX) + ROWS,
        (header("ascii", *VERTEX) + ROWS).encode("utf-16"),
        header("ascii", "element vertex 3", "property list uchar float extra", *XYZ)
        + "".join(f"{n} {'7 ' * n}{row}\n" for n, row in zip((0, 2, 1), ROWS.splitlines(), strict=True)),
        header("ascii", *VERTEX) + ROWS.replace("0 0 0\n", "0 0 0\n\n"),
        header("ascii", *VERTEX, "element range_grid 3", "property list uchar int vertex_indices")
        + ROWS
        + "1 0\n0\n1 1\n",
    ],
)
def test_odd_files(write, text):
    np.testing.assert_array_equal(read_point_cloud(write("a.ply", text)), POINTS)


SQUARE = "0 0 0\n1 0 0\n0 1 0\n1 1 0\n"


@pytest.mark.parametrize(
    ("lines", "rows"),
    [
        (["element tristrips 1", "property list int int vertex_indices"], ["4 0 1 2 3"]),
        (["element tristrips 1", "property list int int vertex_indices"], ["7 0 1 2 -1 1 2 3"]),
        (["element triangle_strips 2", "property list uchar int vertex_index"], ["3 0 1 2", "3 1 2 3"]),
        (["element face 1", "property list uchar uint VERTEX_INDICES"], ["4 0 1 3 2"]),
        (["element face 1", "property list uchar int corners"], ["4 0 1 3 2"]),
        (["element polygon 1", "property list uchar int vertex_indices"], ["4 0 1 3 2"]),
        (
            ["element face 2", "property list uchar float texcoord", "property list uchar int vertex_indices"],
            ["2 0 0 3 0 1 2", "0 3 1 2 3"],
        ),
    ],
)
def test_surfaces(write, lines, rows):
    text = header("ascii", "element vertex 4", *XYZ, *lines) + SQUARE + "\n".join(rows)
    contents = [text]
    if "float" not in lines[1]:
        count, index = {"int int": ("<i4", "<i4"), "uchar int": ("u1", "<i4"), "uchar uint": ("u1", "<u4")}[
            " ".join(lines[1].split()[2:4])
        ]
        corners = [[int(word) for word in row.split()[1:]] for row in rows]
        binary = header("binary_little_endian", "element vertex 4", *XYZ, *lines).encode()
        binary += np.array([row.split() for row in SQUARE.splitlines()], "<f4").tobytes()
        contents.append(
            binary + b"".join(np.array(len(c), count).tobytes() + np.array(c, index).tobytes() for c in corners)
        )
    for content in contents:
        points = read_point_cloud(write("a.ply", content), num_points=2000)
        assert points.shape == (2000, 3)
        np.testing.assert_allclose(points.mean(axis=0), [0.5, 0.5, 0], atol=0.05)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header("ascii", *VERTEX) + ROWS + "1 1 1\n", "promises 3 lines of data, 4 follow"),
        (
            header("binary_little_endian", *VERTEX).encode() + POINTS.astype("<f8").tobytes(),
            "36 bytes follow what its header promises; .* doubles declared as float",
        ),
        (header("binary_little_endian", *VERTEX).encode() + POINTS.tobytes() + POINTS.tobytes(), "36 bytes follow"),
        (
            header("ascii", *VERTEX, "element face 1", "property int v1") + ROWS + "1\n",
            "have no list of vertex_indices",
        ),
        (header("ascii", "element vertex 1", "property list uchar int x", *XYZ[1:]) + "1 1 1 1", "one number each"),
    ],
)
def test_refused(write, content, message):
    with pytest.raises(PointCloudError, match=message):
        read_point_cloud(write("a.ply", content))


@pytest.mark.parametrize("name", ["Label", "class", "scalar_Classification", "semantic", "scalar_segmentation"])
@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_labels(write, name, kind):
    text = header(kind, *VERTEX, "property uchar red", f"property ushort {name}", "property float nx")
    rows = np.zeros(3, [("xyz", ">f4" if "big" in kind else "<f4", 3), ("red", "u1")])
    rows["xyz"] = POINTS
    more = np.array([(1, 2), (0, 3), (300, 4)], [("a", rows.dtype["xyz"].base.str[0] + "u2"), ("b", "u4")])
    body = b"".join(row.tobytes() + other.tobytes() for row, other in zip(rows, more, strict=True))
    if kind == "ascii":
        body = "".join(
            f"{row} 9 {label} 5\n" for row, label in zip(ROWS.splitlines(), (1, 0, 300), strict=True)
        ).encode()
    read = read_labelled_cloud(write("a.ply", text.encode() + body))
    np.testing.assert_array_equal(read, np.column_stack([POINTS, [1, 0, 300]]))


def test_two_properties_that_may_be_labels(write):
    text = header("ascii", *VERTEX, "property int class", "property int label") + "0 0 0 1 1\n" * 3
    with pytest.raises(PointCloudError, match="which vertex property holds the labels, class or label"):
        read_labelled_cloud(write("a.ply", text))
