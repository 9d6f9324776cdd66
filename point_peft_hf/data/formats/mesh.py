"""Meshes read by trimesh (.obj, .stl, .glb), and uniform samples of a surface."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np

from ..errors import PointCloudError, import_optional


def read_mesh(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read an .obj, .stl or .glb file; the parts of a scene are put in their places and joined.

    Args:
        path: The file.

    Returns:
        Vertices of shape `(num_vertices, 3)`, and triangles of shape `(num_triangles, 3)` or None.

    Raises:
        PointCloudError: If trimesh cannot read the file, or there is no vertex in it.
    """
    trimesh = import_optional("trimesh", f"Reading {path.suffix} files")
    file_type = path.suffix[1:].lower()
    data = _repair(path.read_bytes(), file_type, path)
    options = {"skip_materials": True} if file_type in ("obj", "glb") else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # From memory and without a resolver: a mesh cannot make the reader open other files.
            scene = trimesh.load(io.BytesIO(data), file_type=file_type, process=False, **options)
            mesh = scene.to_geometry() if isinstance(scene, trimesh.Scene) else scene
    except BaseException as error:  # trimesh has no common class of errors
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        mesh, reason = None, f"{type(error).__name__}: {error}"
        if isinstance(error, ImportError):
            reason = "its text is not UTF-8; damaged?"  # for which trimesh wants a library that guesses encodings
    else:
        reason = "it holds no mesh"
    vertices = np.asarray(getattr(mesh, "vertices", np.empty((0, 3))), dtype=np.float64)
    faces = getattr(mesh, "faces", None)
    if len(vertices) == 0 and file_type == "obj" and b"\nf " not in data:
        vertices, faces = _obj_vertices(data, path), None
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        reason = f"its vertices are of shape {vertices.shape}"
        if file_type == "obj":
            _obj_vertices(data, path)  # names the line
        vertices = np.empty((0, 3))
    if len(vertices) == 0:
        raise PointCloudError(f"{path}: not a readable .{file_type} mesh: {reason}")
    return vertices, np.asarray(faces) if faces is not None and len(faces) else None


def _repair(data: bytes, file_type: str, path: Path) -> bytes:
    """Put right, or refuse, what trimesh stumbles over."""
    if file_type == "stl":
        triangles = int.from_bytes(data[80:84], "little") if len(data) >= 84 else 0
        size = 84 + 50 * triangles
        is_text = data.lstrip()[:5].lower() == b"solid" and b"facet" in data[:1024]
        if not is_text:
            if len(data) < size or triangles == 0:
                raise PointCloudError(
                    f"{path}: not a readable .stl mesh: its header promises {triangles} triangles, {size} bytes; the "
                    f"file has {len(data)} bytes; truncated?"
                )
            return data[:size]
    if file_type in ("obj", "stl"):
        # Names in another encoding, such as latin-1, are of no interest here.
        return data.decode("utf-8", errors="replace").encode()
    return data


def _obj_vertices(data: bytes, path: Path) -> np.ndarray:
    """Read an .obj file of vertices without faces, which trimesh refuses."""
    rows = []
    for number, line in enumerate(data.decode("utf-8", errors="replace").splitlines(), start=1):
        words = line.split()
        if words[:1] == ["v"]:
            try:
                rows.append([float(word) for word in words[1:4]])
                if len(rows[-1]) < 3:
                    raise ValueError
            except ValueError:
                raise PointCloudError(
                    f"{path}: line {number}: expected 'v x y z', got {line.strip()[:60]!r}"
                ) from None
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def sample_surface(
    vertices: np.ndarray, faces: np.ndarray, num_points: int, generator: np.random.Generator
) -> np.ndarray:
    """Draw points uniformly on the surface of a mesh.

    Args:
        vertices: Corner coordinates of shape `(num_vertices, 3)`, any unit.
        faces: Triangles of shape `(num_triangles, 3)`, as vertex indices.
        num_points: How many points.
        generator: Source of randomness.

    Returns:
        Points of shape `(num_points, 3)`, float64, in the unit of the vertices.

    Raises:
        PointCloudError: If the surface has no area, or an index no vertex.
    """
    if faces.min() < 0 or faces.max() >= len(vertices):
        bad = int(faces.min()) if faces.min() < 0 else int(faces.max())
        raise PointCloudError(f"a face names vertex {bad}, and the file has {len(vertices)} vertices")
    vertices = vertices.astype(np.float64, copy=False)
    corner = vertices[faces[:, 0]]
    first, second = vertices[faces[:, 1]] - corner, vertices[faces[:, 2]] - corner
    cumulative = np.cumsum(np.linalg.norm(np.cross(first, second), axis=1))
    if not cumulative[-1] > 0 or not np.isfinite(cumulative[-1]):
        raise PointCloudError(f"its {len(faces)} faces have no area, so that no point can be drawn on them")
    chosen = np.searchsorted(cumulative, generator.random(num_points) * cumulative[-1], side="right")
    chosen = np.minimum(chosen, len(faces) - 1)
    weights = generator.random((num_points, 2))
    # Fold the unit square onto the triangle, which keeps the density uniform.
    outside = weights.sum(axis=1) > 1
    weights[outside] = 1 - weights[outside]
    return corner[chosen] + weights[:, :1] * first[chosen] + weights[:, 1:] * second[chosen]
