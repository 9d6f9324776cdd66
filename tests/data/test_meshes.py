"""Polygons, and the .obj, .stl and .glb formats."""

import json
import struct

import numpy as np
import pytest
import trimesh

from point_peft_hf.data import PointCloudError, read_point_cloud
from point_peft_hf.data.formats.polygons import triangulate

SQUARE = "v 0 0 0\nv 2 0 0\nv 2 1 0\nv 0 1 0\n"


def area(vertices, triangles):
    first, second, third = (vertices[triangles[:, corner]] for corner in range(3))
    return np.linalg.norm(np.cross(second - first, third - first), axis=1).sum() / 2


def shoelace(outline):
    x, y = np.asarray(outline, dtype=float).T
    return abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


ELL = [(2, 0), (2, 1), (1, 1), (1, 2), (0, 2), (0, 0)]
STAR = [((1 + i % 2) * np.cos(i * np.pi / 7), (1 + i % 2) * np.sin(i * np.pi / 7)) for i in range(14)]
COMB = [(0, 0), (9, 0), *((9 - i, 3 if i % 2 else 1) for i in range(10))]
SPIRAL = [((1 + a) * np.cos(a), (1 + a) * np.sin(a)) for a in np.linspace(0, 6, 60)]
SPIRAL += [((0.7 + a) * np.cos(a), (0.7 + a) * np.sin(a)) for a in np.linspace(6, 0, 60)]
RING = [(0, 0), (4, 0), (4, 4), (0, 4), (0, 0), (1, 1), (1, 3), (3, 3), (3, 1), (1, 1)]  # a hole, cut open
OUTLINES = {
    "L": ELL,
    "arrow": [(0, 0), (2, 1), (0, 2), (1, 1)],
    "star": STAR,
    "comb": COMB,
    "spiral": SPIRAL,
    "ring": RING,
    "corner on a side": [(0, 0), (2, 0), (2, 2), (1, 1), (0, 2), (0, 1)],
}


@pytest.mark.parametrize("name", OUTLINES)
@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("first", [0, 1, 3])
def test_triangles_cover_a_concave_polygon(name, turn, first, rng):
    outline = np.roll(OUTLINES[name][:: -1 if turn else 1], first, axis=0)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    vertices = np.column_stack([outline, np.zeros(len(outline))]) @ rotation + 5
    triangles = triangulate([range(len(outline))], vertices)
    # As many triangles as a polygon has, whose areas sum up to its own: they neither overlap nor leave it.
    assert len(triangles) == len(outline) - 2
    np.testing.assert_allclose(area(vertices, triangles), shoelace(outline), rtol=1e-9)


def test_polygons_of_any_size_at_once(rng):
    vertices = np.column_stack([rng.normal(size=(20, 2)), np.zeros(20)])
    vertices[:6, :2], vertices[6:10, :2] = ELL, [(0, 0), (2, 1), (0, 2), (1, 1)]
    triangles = triangulate([[0, 1], range(6), range(6, 10), [10, 11, 12], []], vertices)
    expected = 3 + 1 + area(vertices, np.array([[10, 11, 12]]))
    np.testing.assert_allclose(area(vertices, triangles), expected)
    assert triangulate([], vertices).shape == (0, 3)
    np.testing.assert_array_equal(triangulate(np.array([[0, 1, 2]]), vertices), [[0, 1, 2]])
    with pytest.raises(PointCloudError, match="a face names vertex 20, and the file has 20 vertices"):
        triangulate([[0, 1, 2, 20]], vertices)


def test_an_outline_that_crosses_itself_ends(rng):
    vertices = np.column_stack([rng.normal(size=(2001, 2)), np.zeros(2001)])
    assert len(triangulate([range(500)], vertices)) == 498
    with pytest.raises(PointCloudError, match="a concave polygon has 2001 corners"):
        triangulate([range(2001)], vertices)


def write_polygon(name, outline):
    rows = [f"{x} {y} 0" for x, y in outline]
    numbers = range(len(outline))
    if name == "a.off":
        return "\n".join([f"OFF\n{len(rows)} 1 0", *rows, " ".join(map(str, (len(rows), *numbers)))])
    if name == "a.obj":
        return "\n".join([*(f"v {row}" for row in rows), "f " + " ".join(str(i + 1) for i in numbers)])
    if name == "negative.obj":
        return "\n".join([*(f"v {row}" for row in rows), "f " + " ".join(str(i - len(rows)) for i in numbers)])
    axes = "".join(f"property float {axis}\n" for axis in "xyz")
    head = f"format {{}} 1.0\nelement vertex {len(rows)}\n{axes}element face 1\nproperty list uchar int vertex_index\n"
    if name == "ascii.ply":
        head = "ply\n" + head.format("ascii") + "end_header\n"
        return head + "\n".join([*rows, " ".join(map(str, (len(rows), *numbers)))])
    flat = np.column_stack([outline, np.zeros(len(outline))]).astype("<f4").tobytes()
    head = ("ply\n" + head.format("binary_little_endian") + "end_header\n").encode()
    return head + flat + bytes([len(rows)]) + np.arange(len(rows), dtype="<i4").tobytes()


@pytest.mark.parametrize("name", ["a.off", "a.obj", "negative.obj", "ascii.ply", "binary.ply"])
def test_concave_polygons_in_every_format(write, name):
    points = read_point_cloud(write(name, write_polygon(name, ELL)), num_points=4000)
    assert not ((points[:, 0] > 1) & (points[:, 1] > 1)).any()
    np.testing.assert_allclose(points.mean(axis=0), [5 / 6, 5 / 6, 0], atol=0.05)


@pytest.mark.parametrize(
    "text",
    [
        SQUARE + "f\t1\t2\t3\nf\t1\t3\t4\n",
        SQUARE + "f\t1\t2\t3\nf 1 3 4\n",
        (SQUARE + "f 1 2 3\nf 1 3 4\n").replace("\n", "\r"),
        (SQUARE + "f 1 2 3\nf 1 3 4\n").replace("\n", "\r\n"),
        "\ufeff" + SQUARE + "v 0 0 9\nf 1 2 3 4\n",
        (SQUARE + "f 1 2 3 4\n").encode("utf-16"),
        ("  " + SQUARE + "f 1 2 3 4").replace("\n", "\n \t "),
        SQUARE.replace(" ", "\t") + "f 1 2 3 4",
        SQUARE + "f 1 2 \\\n3 4\n",
        SQUARE + "f 1/1/1 2/2/2 3/3/3 4/4/4 # a face\n",
        SQUARE + "f 1//1 2//1 3//1\nf 1/7 3/8 4/9\n",
        SQUARE.replace("\n", " 0.5 0.5 0.5 # grey\n") + "g side\nusemtl wood\ns off\nf -4 -3 -2 -1\n",
        SQUARE + "f -4 -3 -2 -1\nv 9 9 9\nf 1 2 3 4\n",
        SQUARE + "F 1 2 3 4\n",
        SQUARE.replace("v", "V") + "fo 1 2 3 4\n",
        SQUARE + "f 1 2 3\nf 1 3 4\nf 1 2\nl 1 2 3\n",
        "# page\x0c\n" + SQUARE.replace("2 1 0", "2,0 1,0 0,0") + "f 1 2 3 4\n",
    ],
)
def test_obj_lines(write, text):
    points = read_point_cloud(write("a.obj", text), num_points=3000)
    assert points.shape == (3000, 3)
    np.testing.assert_allclose(points.mean(axis=0), [1, 0.5, 0], atol=0.05)
    np.testing.assert_allclose([points.min(axis=0), points.max(axis=0)], [[0, 0, 0], [2, 1, 0]], atol=0.02)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SQUARE + "f 1 2 5\n", "a face names vertex 5, and the file has 4 vertices"),
        (SQUARE + "f 0 1 2\n", "a face names vertex 0, and the file has 4 vertices"),
        (SQUARE + "f -5 -2 -1\n", "a face names vertex -5, and the file has 4 vertices"),
        (SQUARE + "f 1 2 x\n", "line 5: expected 'f' and numbers of vertices, got 'f 1 2 x'"),
        (SQUARE + "surf 0 1 0 1 1 2 3 4\n", "free-form surfaces"),
        ("vn 0 0 1\n", "no line starts with v"),
        (SQUARE + "\0", "binary"),
    ],
)
def test_broken_obj(write, text, message):
    with pytest.raises(PointCloudError, match=f"a.obj: .*{message}"):
        read_point_cloud(write("a.obj", text))


STL = trimesh.exchange.stl.export_stl_ascii(trimesh.creation.box())


@pytest.mark.parametrize(
    "text",
    [
        STL,
        STL.upper(),
        STL.replace("endsolid", "end solid"),
        STL.replace("\n", "\r\n"),
        STL.replace("\n", "\r"),
        STL.encode("utf-16"),
        "\ufeff" + STL,
        "\n  " + STL,
        STL.replace("solid", "SOLID") + "\n\n",
        STL + "\n" + STL,
    ],
)
def test_stl_text(write, text):
    points = read_point_cloud(write("a.stl", text), num_points=500)
    np.testing.assert_allclose(abs(points).max(axis=1), 0.5, atol=1e-6)


def test_stl_binary(write):
    data = trimesh.creation.box().export(file_type="stl")
    for head in (data[:80], b"solid facet".ljust(80), b"COLOR=".ljust(80)):
        points = read_point_cloud(write("a.stl", head + data[80:]), num_points=500)
        np.testing.assert_allclose(abs(points).max(axis=1), 0.5, atol=1e-6)
    assert len(read_point_cloud(write("a.stl", data + bytes(7)))) == 8192
    with pytest.raises(
        PointCloudError, match="promises 12 triangles, 684 bytes; the file has 734 bytes; a wrong count"
    ):
        read_point_cloud(write("a.stl", data + b"\1" * 50))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (STL[:-20], "does not end the solid; truncated"),
        (STL.replace("vertex", "vertx", 1), "12 facets and 35 vertices"),
        ("solid a\nendsolid a\n", "0 facets and 0 vertices"),
        (STL.replace("0.5", "half", 1), "expected a number in column"),
    ],
)
def test_broken_stl(write, text, message):
    with pytest.raises(PointCloudError, match=f"a.stl: .*{message}"):
        read_point_cloud(write("a.stl", text))


PLATE = np.array([[0, 0, 0], [2, 0, 0], [2, 1, 0], [0, 1, 0]], dtype=float)


def glb(positions, indices=None, *, nodes=None, stride=0, mode=4, accessor=None, extensions=(), **more):
    """Make a .glb file of one mesh."""
    codes = {"int8": 5120, "uint8": 5121, "int16": 5122, "uint16": 5123, "uint32": 5125, "float32": 5126}
    width = max(stride, 3 * positions.itemsize)
    rows = np.zeros((len(positions), width), np.uint8)
    rows[:, : 3 * positions.itemsize] = np.ascontiguousarray(positions).view(np.uint8).reshape(len(positions), -1)
    body = rows.tobytes()
    views = [{"buffer": 0, "byteLength": len(body), **({"byteStride": stride} if stride else {})}]
    accessors = [
        {"bufferView": 0, "componentType": codes[positions.dtype.name], "count": len(positions), "type": "VEC3"}
    ]
    accessors[0] |= accessor or {}
    primitive = {"attributes": {"POSITION": 0}, "mode": mode}
    if indices is not None:
        views.append({"buffer": 0, "byteOffset": len(body), "byteLength": indices.nbytes})
        accessors.append(
            {"bufferView": 1, "componentType": codes[indices.dtype.name], "count": len(indices), "type": "SCALAR"}
        )
        body += indices.tobytes()
        primitive["indices"] = 1
    content = {
        "asset": {"version": "2.0"},
        "nodes": nodes or [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(body)}],
        "extensionsUsed": list(extensions),
        "extensionsRequired": list(extensions),
        **more,
    }
    head = json.dumps(content).encode()
    head, body = head + b" " * (-len(head) % 4), body + bytes(-len(body) % 4)
    chunks = struct.pack("<I4s", len(head), b"JSON") + head + struct.pack("<I4s", len(body), b"BIN\0") + body
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


QUAD = np.array([0, 1, 2, 0, 2, 3], "u2")
SIGNED = {"normalized": True}


def extent(write, content):
    points = read_point_cloud(write("a.glb", content), num_points=4000)
    assert points.shape == (4000, 3)
    return np.array([points.min(axis=0), points.max(axis=0)])


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2"])
@pytest.mark.parametrize("stride", [0, 8])
@pytest.mark.parametrize("moves", [[0], [0, 5]])
def test_quantised_glb(write, dtype, stride, moves):
    top = np.iinfo(dtype).max
    quantised = np.round(PLATE / 4 * top).astype(dtype)
    nodes = [{"mesh": 0, "scale": [4, 4, 4], "translation": [move, 0, 0]} for move in moves]
    content = glb(quantised, QUAD, nodes=nodes, stride=stride, accessor=SIGNED, extensions=["KHR_mesh_quantization"])
    np.testing.assert_allclose(extent(write, content), [[0, 0, 0], [2 + moves[-1], 1, 0]], atol=0.05)
    # Without `normalized` the whole numbers are the coordinates.
    content = glb(PLATE.astype(dtype), QUAD, stride=stride, extensions=["KHR_mesh_quantization"])
    np.testing.assert_allclose(extent(write, content), [[0, 0, 0], [2, 1, 0]], atol=0.05)


def test_glb_nodes(write):
    turned = {"rotation": [0, 0, np.sqrt(0.5), np.sqrt(0.5)], "children": [1]}  # a quarter turn about z
    moved = {"matrix": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 10, 0, 0, 1], "mesh": 0}
    content = glb(PLATE.astype("f4"), QUAD, nodes=[turned, moved])
    np.testing.assert_allclose(extent(write, content), [[-1, 10, 0], [0, 12, 0]], atol=0.02)
    # Nodes outside of the scene that is shown are left out.
    scenes = {"scene": 1, "scenes": [{"nodes": [0]}, {"nodes": [1]}]}
    content = glb(PLATE.astype("f4"), QUAD, nodes=[{"mesh": 0}, moved], **scenes)
    np.testing.assert_allclose(extent(write, content), [[10, 0, 0], [12, 1, 0]], atol=0.02)


@pytest.mark.parametrize(
    ("mode", "indices"),
    [(4, QUAD.astype("u4")), (4, QUAD.astype("u1")), (5, np.array([0, 1, 3, 2], "u2")), (6, None), (4, None)],
)
def test_glb_modes(write, mode, indices):
    positions = PLATE[QUAD] if indices is None and mode == 4 else PLATE
    np.testing.assert_allclose(
        extent(write, glb(positions.astype("f4"), indices, mode=mode)), [[0, 0, 0], [2, 1, 0]], atol=0.02
    )


def test_glb_of_points(write):
    np.testing.assert_array_equal(read_point_cloud(write("a.glb", glb(PLATE.astype("f4"), mode=0))), PLATE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (glb(PLATE.astype("f4"), QUAD, extensions=["KHR_draco_mesh_compression"]), "uses KHR_draco_mesh_compression"),
        (glb(PLATE.astype("f4"), QUAD, extensions=["EXT_meshopt_compression"]), "gltf-transform copy"),
        (glb(PLATE.astype("f4"), QUAD + np.uint16(9)), "a face names vertex 12, and there are 4"),
        (glb(PLATE.astype("f4"), QUAD, nodes=[{"mesh": 0, "children": [0]}]), "no mesh"),
        (glb(PLATE.astype("f4"), QUAD, accessor={"count": 10**9}), "do not fit in 48 bytes"),
        (glb(PLATE.astype("f4"), QUAD, accessor={"type": "VEC2"}), "of type 'VEC2' instead of VEC3"),
        (glb(PLATE.astype("f4"), QUAD, buffers=[{"uri": "a.bin", "byteLength": 60}]), "its data are in another file"),
        (glb(PLATE.astype("f4"), QUAD, mode=1), "holds no mesh"),
        (glb(PLATE.astype("f4"), QUAD) + b"more", "promises .* bytes, the file has"),
    ],
)
def test_broken_glb(write, content, message):
    with pytest.raises(PointCloudError, match=f"a.glb: not a readable .glb mesh: .*{message}"):
        read_point_cloud(write("a.glb", content))
