"""Small valid files of every format to start from, and what may come out of reading a damaged one."""

from __future__ import annotations

import json
import resource
import struct
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from point_peft_hf.data import PointCloudError, read_point_cloud
from point_peft_hf.data.part_files import read_labelled_cloud

POINTS = np.array([[0, 0, 0], [2, 0, 0], [2, 1, 0], [0, 1, 0.5]])
MAX_SECONDS = 5
# Ten times the file, above what any file takes.
MEMORY_FACTOR, MEMORY_FLOOR = 10, 64 << 20


def _text(rows: np.ndarray, sep: str = " ") -> str:
    return "".join(sep.join(f"{value:g}" for value in row) + "\n" for row in rows)


def _ply(kind: str) -> bytes:
    head = "".join(f"property float {axis}\n" for axis in "xyz") + "property uchar label\n"
    head = f"ply\nformat {kind} 1.0\nelement vertex 4\n{head}element face 2\nproperty list uchar int vertex_indices\n"
    head = f"{head}end_header\n"
    if kind == "ascii":
        return (head + _text(np.column_stack([POINTS, [0, 1, 1, 0]])) + "3 0 1 2\n4 0 1 2 3\n").encode()
    order = "<" if "little" in kind else ">"
    rows = b"".join(np.array(point, f"{order}f4").tobytes() + b"\1" for point in POINTS)
    faces = b"".join(bytes([n]) + np.arange(n, dtype=f"{order}i4").tobytes() for n in (3, 4))
    return head.encode() + rows + faces


def _pcd(kind: str) -> bytes:
    head = "FIELDS x y z label\nSIZE 4 4 4 4\nTYPE F F F U\nCOUNT 1 1 1 1\nWIDTH 4\nHEIGHT 1\nPOINTS 4\n"
    head = f"# .PCD v0.7\nVERSION 0.7\n{head}DATA {kind}\n".encode()
    if kind == "ascii":
        return head + _text(np.column_stack([POINTS, [0, 1, 1, 0]])).encode()
    columns = [POINTS.T.astype("<f4").tobytes(), np.array([0, 1, 1, 0], "<u4").tobytes()]
    if kind == "binary":
        rows = np.column_stack([POINTS.astype("<f4").view("<u4"), [0, 1, 1, 0]]).astype("<u4")
        return head + rows.tobytes()
    plain = b"".join(columns)
    packed = b"".join(bytes([len(plain[i : i + 32]) - 1]) + plain[i : i + 32] for i in range(0, len(plain), 32))
    return head + struct.pack("<II", len(packed), len(plain)) + packed


def _stl() -> bytes:
    return bytes(80) + struct.pack("<I", 1) + struct.pack("<12fH", 0, 0, 1, *POINTS[:3].ravel(), 0)


def _glb() -> bytes:
    body = POINTS.astype("<f4").tobytes() + np.array([0, 1, 2, 0, 2, 3], "<u2").tobytes()
    content = {
        "nodes": [{"mesh": 0, "scale": [2, 2, 2], "children": [1]}, {"mesh": 0, "rotation": [0, 0, 0, 1]}],
        "scenes": [{"nodes": [0]}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 4, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5123, "count": 6, "type": "SCALAR"},
        ],
        "bufferViews": [{"buffer": 0, "byteLength": 48}, {"buffer": 0, "byteOffset": 48, "byteLength": 12}],
        "buffers": [{"byteLength": 60}],
    }
    head = json.dumps(content).encode()
    head += b" " * (-len(head) % 4)
    chunks = struct.pack("<I4s", len(head), b"JSON") + head + struct.pack("<I4s", len(body), b"BIN\0") + body
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _with_libraries(folder: Path) -> dict[str, list[bytes]]:
    """Write the formats that libraries write, where they are installed."""
    found: dict[str, list[bytes]] = {}
    np.save(folder / "a.npy", POINTS)
    np.savez(folder / "a.npz", vertices=POINTS, faces=np.array([[0, 1, 2]]), label=np.arange(4))
    np.savez_compressed(folder / "b.npz", points=np.tile(POINTS, (9, 1)))
    fields = np.zeros(4, [("x", "f4"), ("y", "f4"), ("z", "f4"), ("label", "u1")])
    np.save(folder / "b.npy", fields)
    try:
        import h5py

        for name, options in (("a.h5", {}), ("b.h5", {"compression": "gzip", "chunks": (2, 3)})):
            with h5py.File(folder / name, "w") as file:
                file.create_dataset("points", data=POINTS, **options)
                file["label"] = np.arange(4)
    except ImportError:
        pass
    try:
        import laspy

        for name in ("a.las", "a.laz") if laspy.LazBackend.detect_available() else ("a.las",):
            las = laspy.LasData(laspy.LasHeader(point_format=6 if name == "a.laz" else 3, version="1.4"))
            las.xyz, las.classification = POINTS, np.arange(4)
            las.write(folder / name)
    except ImportError:
        pass
    for path in sorted(folder.iterdir()):
        found.setdefault(path.suffix, []).append(path.read_bytes())
    return found


def seeds(folder: Path) -> dict[str, list[bytes]]:
    """Make a few valid files of every format.

    Args:
        folder: An empty folder to work in.

    Returns:
        Contents of files by the ending of their names.
    """
    table = np.column_stack([POINTS, [0, 1, 1, 0]])
    faces = "".join(f"v {x:g} {y:g} {z:g}\n" for x, y, z in POINTS)
    stl = "".join(f"vertex {x:g} {y:g} {z:g}\n" for x, y, z in POINTS[:3])
    stl = f"solid a\nfacet normal 0 0 1\nouter loop\n{stl}endloop\nendfacet\nendsolid a\n"
    text = [
        _text(table),
        "x;y;z;label\n" + _text(table, ";").replace(".", ","),
        "# t, X (m), Y (m), Z (m)\n" + _text(table[:, [3, 0, 1, 2]], ", "),
        "GPS Time\tX\tY\tZ\n" + _text(table[:, [3, 0, 1, 2]], "\t"),
        "sep=,\n0,1,2\n" + _text(POINTS + 0.5, ","),
        "2\n" + _text(table[:2]) + "2\n" + _text(table[2:]),
        '"1.5" "2" "-nan(ind)"\n# a\x0c\n1 2 3 // b\n',
    ]
    ascii_text = [content.encode() for content in text]
    return {
        **_with_libraries(folder),
        ".txt": [*ascii_text, text[1].encode("utf-16")],
        ".pts": ascii_text,
        ".off": [f"OFF\n4 2 0\n{_text(POINTS)}3 0 1 2\n4 0 1 2 3\n".encode(), b"OFF1 0 0\n1 2 3\n"],
        ".obj": [f"{faces}f 1 2 3 4\nf -4/1 -3/2 -2/3\n".encode(), f"{faces}f\t1 2 \\\n3\n".encode("utf-16")],
        ".stl": [_stl(), stl.encode(), stl.upper().encode()],
        ".glb": [_glb()],
        ".ply": [_ply(kind) for kind in ("ascii", "binary_little_endian", "binary_big_endian")],
        ".pcd": [_pcd(kind) for kind in ("ascii", "binary", "binary_compressed")],
        ".bin": [POINTS.astype("<f4").tobytes()],
        ".e57": [b"ASTM-E57" + bytes(40)],
    }


def peak_bytes() -> int:
    """Give the largest memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def check(path: Path, content: bytes) -> str:
    """Read a file with both readers, and check what comes out: points, or an error that names the file, soon.

    Args:
        path: Where to write it.
        content: What to write.

    Returns:
        `"points"` or `"error"`.
    """
    path.write_bytes(content)
    outcome = "error"
    before = peak_bytes()
    for read in (lambda: read_point_cloud(path, num_points=64), lambda: read_labelled_cloud(path)):
        start, text = time.perf_counter(), str(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                points = read()
        except PointCloudError as error:
            text = str(error)
        except ImportError:
            assert path.suffix == ".e57"
        else:
            assert points.dtype == np.float32
            assert points.ndim == 2
            assert points.shape[1] in (3, 4)
            assert np.isfinite(points).all()
            outcome = "points"
        assert str(path) in text, f"the message does not name the file: {text}"
        assert time.perf_counter() - start < MAX_SECONDS, f"it took {time.perf_counter() - start:.1f} s"
    grown = peak_bytes() - before
    assert grown <= MEMORY_FLOOR + MEMORY_FACTOR * len(content), f"{grown >> 20} MB for {len(content)} bytes"
    return outcome
