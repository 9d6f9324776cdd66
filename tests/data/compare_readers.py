"""Compare the readers with trimesh, laspy, open3d and pye57, where these are installed, over odd files built here.

    python tests/data/compare_readers.py

Each line gives a file, what `read_point_cloud` makes of it, and whether each library that reads the format agrees: on
the coordinates of a cloud, on the bounds and the area of a mesh. Where they differ, both values are printed; a person
has to say who is right.
"""

from __future__ import annotations

import importlib
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import fuzz_files

from point_peft_hf.data import READERS, PointCloudError
from point_peft_hf.data.readers import choose_reader, errors_of

POINTS = np.random.default_rng(0).normal(size=(40, 3)).astype("<f4")
ELL = "2 0 0\n2 1 0\n1 1 0\n1 2 0\n0 2 0\n0 0 0\n"
SQUARE = "v 0 0 0\nv 2 0 0\nv 2 1 0\nv 0 1 0\n"
PLY = "ply\nformat ascii 1.0\nelement vertex 40\nproperty float x\nproperty float y\nproperty float z\nend_header\n"


def rows(points: np.ndarray, sep: str = " ") -> str:
    """Write points as text."""
    return "".join(sep.join(f"{value:.9g}" for value in point) + "\n" for point in points)


def odd_files(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    """Give name, note and content of files."""
    for suffix, contents in fuzz_files.seeds(folder).items():
        for number, content in enumerate(contents):
            yield f"seed_{number}{suffix}", "small and valid", content
    quads = "".join(f"f {a} {a + 1} {a + 11} {a + 10}\n" for a in range(1, 80) if a % 10)
    grid = "".join(f"v {i % 10} {i // 10} {np.sin(i):.4f}\n" for i in range(90))
    texts = {
        "quads.obj": ("quadrilaterals that are not flat", grid + quads),
        "ell.obj": (
            "concave: a fan has area 4",
            "".join(f"v {row}\n" for row in ELL.splitlines()) + "f 1 2 3 4 5 6\n",
        ),
        "ell.off": ("concave: a fan has area 4", f"OFF\n6 1 0\n{ELL}6 0 1 2 3 4 5\n"),
        "tabs.obj": ("f and a tab", SQUARE + "f\t1\t2\t3\nf 1 3 4\n"),
        "cr.obj": ("line ends of old Macintosh", (SQUARE + "f 1 2 3 4\n").replace("\n", "\r")),
        "mark.obj": ("byte order mark", "\ufeff" + SQUARE + "f 1 2 3 4\n"),
        "blanks.obj": ("leading blanks", ("  " + SQUARE + "f 1 2 3 4").replace("\n", "\n  ")),
        "relative.obj": ("numbers from the end", SQUARE + "f -4 -3 -2 -1\nv 5 5 5\nv 6 5 5\nv 6 6 5\nf -3 -2 -1\n"),
        "double.ply": ("doubles", PLY.replace("float", "double") + rows(POINTS)),
        "long.ply": ("a row more than promised", PLY.replace("40", "39") + rows(POINTS)),
        "cr.ply": ("line ends of old Macintosh", (PLY + rows(POINTS)).replace("\n", "\r")),
        "capitals.ply": ("capitals", PLY.replace("float", "FLOAT").replace("element", "ELEMENT") + rows(POINTS)),
        "strips.ply": (
            "triangle strips",
            PLY.replace("40", "4").replace("end_h", "element tristrips 1\nproperty list int int vertex_indices\nend_h")
            + "0 0 0\n1 0 0\n0 1 0\n1 1 0\n4 0 1 2 3\n",
        ),
        "cloud.xyz": ("blanks", rows(POINTS)),
        "comma.pts": ("a count", "40\n" + rows(POINTS)),
        "columns.pcd": (
            "COLUMNS of version 0.5",
            "COLUMNS x y z\nSIZE 4 4 4\nTYPE F F F\nWIDTH 40\nHEIGHT 1\nDATA ascii\n" + rows(POINTS),
        ),
    }
    for name, (note, text) in texts.items():
        yield name, note, text.encode()
    body = PLY.replace("ascii", "binary_big_endian").encode() + POINTS.astype(">f4").tobytes()
    yield "big.ply", "big endian", body
    yield (
        "doubles.ply",
        "floats declared, doubles written",
        PLY.replace("ascii", "binary_little_endian").encode() + (POINTS.astype("<f8").tobytes()),
    )
    for count in (2, 1):
        head = bytes(80) + struct.pack("<I", count)
        triangles = b"".join(struct.pack("<12fH", *np.zeros(3), *np.eye(3).ravel() * (i + 1), 0) for i in range(2))
        yield f"count_{count}.stl", "two triangles", head + triangles


def measure(vertices: np.ndarray, faces: np.ndarray | None) -> str:
    """Describe a cloud or a mesh by numbers that do not depend on the order of its parts."""
    vertices = np.asarray(vertices, dtype=np.float64)
    if faces is None or len(faces) == 0:
        return f"{len(vertices)} points, sum {np.round(vertices.sum(axis=0), 3) + 0.0}"
    corners = vertices[np.asarray(faces)]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    low, high = corners.min(axis=(0, 1)), corners.max(axis=(0, 1))
    area = np.linalg.norm(normals, axis=1).sum() / 2
    return f"area {area:.4f}, from {np.round(low, 3) + 0.0} to {np.round(high, 3) + 0.0}"


def own(path: Path) -> str:
    """Read with the package, before points are drawn."""
    with errors_of(path):
        return measure(*choose_reader(path)(path))


def with_trimesh(trimesh: object, path: Path) -> str:
    """Read with trimesh."""
    scene = trimesh.load(path, process=False)
    mesh = scene.to_geometry() if isinstance(scene, trimesh.Scene) else scene
    return measure(mesh.vertices, getattr(mesh, "faces", None))


def with_open3d(open3d: object, path: Path) -> str:
    """Read with open3d."""
    if path.suffix in (".obj", ".stl", ".off", ".glb", ".ply"):
        mesh = open3d.io.read_triangle_mesh(str(path))
        if len(mesh.triangles):
            return measure(np.asarray(mesh.vertices), np.asarray(mesh.triangles))
    cloud = np.asarray(open3d.io.read_point_cloud(str(path)).points)
    if len(cloud) == 0:
        raise ValueError("nothing was read")
    return measure(cloud, None)


def with_laspy(laspy: object, path: Path) -> str:
    """Read with laspy."""
    return measure(np.asarray(laspy.read(path).xyz), None)


LIBRARIES: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "trimesh": (with_trimesh, (".obj", ".stl", ".off", ".glb", ".ply", ".xyz")),
    "open3d": (with_open3d, (".obj", ".stl", ".off", ".glb", ".ply", ".pcd", ".xyz", ".pts")),
    "laspy": (with_laspy, (".las", ".laz")),
}


def attempt(read: Callable, *arguments: object) -> str:
    """Give what a reader gives, or its error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read(*arguments)
    except (PointCloudError, ImportError) as error:
        return f"refused: {str(error).partition(': ')[2][:100]}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {' '.join(str(error).split())[:60]}"


def compare_e57(folder: Path) -> None:
    """Write two scans with pye57 and read them."""
    try:
        pye57 = importlib.import_module("pye57")
    except ImportError:
        print("scans.e57: pye57 is not installed")
        return
    path = folder / "scans.e57"
    file = pye57.E57(str(path), mode="w")
    for move in ([0, 0, 0], [5, 0, 0]):
        data = {f"cartesian{axis}": POINTS[:, column].astype(float) for column, axis in enumerate("XYZ")}
        file.write_scan_raw(data, translation=np.array(move, dtype=float), rotation=np.array([1.0, 0, 0, 0]))
    file.close()
    expected = measure(np.concatenate([POINTS, POINTS + [5, 0, 0]]), None)
    found = attempt(own, path)
    print(f"scans.e57 (two scans, one moved): {found}; {'as' if found == expected else 'but'} written: {expected}")


def main() -> None:
    """Read every file with every library."""
    modules = {}
    for name in LIBRARIES:
        try:
            modules[name] = importlib.import_module(name)
        except ImportError:
            print(f"{name} is not installed")
    agreed = differing = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "seeds").mkdir()
        for name, note, content in odd_files(folder / "seeds"):
            path = folder / name
            path.write_bytes(content)
            found = attempt(own, path)
            others = {
                library: attempt(read, modules[library], path)
                for library, (read, suffixes) in LIBRARIES.items()
                if library in modules and path.suffix in suffixes
            }
            print(f"{name} ({note}): {found}")
            for library, other in others.items():
                agreed, differing = agreed + (other == found), differing + (other != found)
                print(f"    {library}: {'the same' if other == found else other}")
        compare_e57(folder)
    print(f"\n{agreed} times the same, {differing} times not; formats read: {', '.join(sorted(READERS))}")


if __name__ == "__main__":
    main()
