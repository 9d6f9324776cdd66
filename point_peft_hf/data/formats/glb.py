"""The .glb format, binary glTF 2.0: the triangles or points of its scene, in their places."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import PointCloudError, shorten

_TYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
_POINTS, _TRIANGLES, _STRIP, _FAN = 0, 4, 5, 6
# Extensions that change what the numbers of a mesh mean; others are about looks.
_KNOWN = ("KHR_mesh_quantization", "KHR_materials_", "KHR_texture_", "KHR_lights_punctual", "KHR_xmp", "EXT_texture_")
_ALWAYS_REFUSED = ("KHR_draco_mesh_compression", "EXT_meshopt_compression", "EXT_mesh_gpu_instancing")
_MAX_DEPTH = 1000
_MAX_VERTICES = 100_000_000  # one mesh may stand in a scene many times


def read_glb(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a .glb file, also with quantised coordinates (KHR_mesh_quantization), as vertices and triangles or None.

    Compressed meshes, and those in another file, are errors.
    """
    try:
        scene = _Scene(*_read_chunks(path.read_bytes()))
        return scene.read()
    except PointCloudError as error:
        raise PointCloudError(f"{path}: not a readable .glb mesh: {error}") from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, struct.error, RecursionError) as error:
        raise PointCloudError(f"{path}: not a readable .glb mesh: {type(error).__name__}: {error}; damaged?") from None


def _read_chunks(data: bytes) -> tuple[dict, bytes]:
    """Give the JSON and the binary chunk."""
    if len(data) < 20 or data[:4] != b"glTF":
        raise PointCloudError("it does not start with the header of a .glb file")
    _, version, size = struct.unpack_from("<4sII", data)
    if version != 2:
        raise PointCloudError(f"it is glTF of version {version}, and version 2 is read")
    if size != len(data) and (size > len(data) or data[size:].strip(b"\0\r\n ")):
        raise PointCloudError(f"its header promises {size} bytes, the file has {len(data)}; truncated or damaged?")
    offset, chunks = 12, {}
    while offset + 8 <= size:
        length, kind = struct.unpack_from("<I4s", data, offset)
        if offset + 8 + length > size:
            raise PointCloudError(f"a chunk of {length} bytes goes beyond the end; damaged?")
        chunks.setdefault(kind, data[offset + 8 : offset + 8 + length])
        offset += 8 + length
    if b"JSON" not in chunks:
        raise PointCloudError("it has no JSON chunk; damaged?")
    return json.loads(chunks[b"JSON"].decode("utf-8")), chunks.get(b"BIN\0", b"")


class _Scene:
    """The scene of a file that is to be read once, given its JSON and its binary chunk."""

    def __init__(self, content: dict, binary: bytes):
        self.content, self.binary = content, binary
        required = content.get("extensionsRequired", [])
        refused = [name for name in content.get("extensionsUsed", []) if name in _ALWAYS_REFUSED]
        refused += [name for name in required if not name.startswith(_KNOWN)]
        if refused:
            raise PointCloudError(
                f"it uses {refused[0]}, which is not read; write it without, for example with "
                "`gltf-transform copy in.glb out.glb`"
            )

    def read(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Give the vertices and triangles of all nodes; points where there are no triangles."""
        points: list[np.ndarray] = []
        faces: list[np.ndarray] = []
        start = 0
        for mesh, matrix in self._meshes():
            for primitive in mesh["primitives"]:
                positions, triangles = self._primitive(primitive)
                points.append(positions @ matrix[:3, :3].T + matrix[:3, 3])
                faces.append(triangles + start)
                start += len(positions)
                if start > _MAX_VERTICES:
                    raise PointCloudError(f"its scene repeats meshes to more than {_MAX_VERTICES} vertices")
        vertices = np.concatenate(points) if points else np.empty((0, 3))
        if len(vertices) == 0:
            raise PointCloudError("it holds no mesh")
        triangles = np.concatenate(faces)
        return vertices, triangles if len(triangles) else None

    def _meshes(self) -> list[tuple[dict, np.ndarray]]:
        """Give the meshes of the default scene with the matrices that put them in their places."""
        nodes = self.content.get("nodes", [])
        scenes = self.content.get("scenes", [])
        if scenes:
            roots = scenes[self.content.get("scene", 0)].get("nodes", [])
        else:
            children = {child for node in nodes for child in node.get("children", [])}
            roots = [index for index in range(len(nodes)) if index not in children]
        found, waiting, visited = [], [(index, np.eye(4), 0) for index in reversed(roots)], set()
        while waiting:
            index, parent, depth = waiting.pop()
            if index in visited or not 0 <= index < len(nodes) or depth > _MAX_DEPTH:
                raise PointCloudError(f"node {index} does not exist, or is the child of several nodes")
            visited.add(index)
            node = nodes[index]
            matrix = parent @ _matrix(node)
            if "mesh" in node:
                found.append((self.content["meshes"][node["mesh"]], matrix))
            waiting += [(child, matrix, depth + 1) for child in reversed(node.get("children", []))]
        return found

    def _primitive(self, primitive: dict) -> tuple[np.ndarray, np.ndarray]:
        """Give the vertices and triangles of a part of a mesh; lines have none."""
        positions = self._accessor(primitive["attributes"]["POSITION"], "VEC3")
        mode = primitive.get("mode", _TRIANGLES)
        if "indices" in primitive:
            indices = self._accessor(primitive["indices"], "SCALAR", whole=True)[:, 0].astype(np.int64)
            if len(indices) and indices.max() >= len(positions):
                raise PointCloudError(f"a face names vertex {indices.max()}, and there are {len(positions)}")
        else:
            indices = np.arange(len(positions))
        if mode == _TRIANGLES:
            return positions, indices[: len(indices) // 3 * 3].reshape(-1, 3)
        if mode in (_STRIP, _FAN) and len(indices) >= 3:
            first = indices[:-2] if mode == _STRIP else np.broadcast_to(indices[:1], len(indices) - 2)
            return positions, np.stack([first, indices[1:-1], indices[2:]], axis=1)
        return positions if mode == _POINTS else positions[:0], np.empty((0, 3), dtype=np.int64)

    def _accessor(self, index: int, kind: str, whole: bool = False) -> np.ndarray:
        """Read an array of shape `(count, width)`: whole numbers, or float64."""
        accessor = self.content["accessors"][index]
        if accessor["type"] != kind:
            raise PointCloudError(f"accessor {index} is of type {shorten(accessor['type'])} instead of {kind}")
        dtype, width, count = np.dtype(_TYPES[accessor["componentType"]]), _WIDTHS[kind], accessor["count"]
        if "bufferView" in accessor:
            values = self._view(accessor, dtype, width, count)
        elif "sparse" in accessor and 0 <= count <= len(self.binary) * 8:
            values = np.zeros((count, width), dtype)
        else:
            raise PointCloudError(f"accessor {index} has no data")
        if "sparse" in accessor:
            sparse, values = accessor["sparse"], values.copy()
            places = np.dtype(_TYPES[sparse["indices"]["componentType"]])
            changed = self._view(sparse["indices"], places, 1, sparse["count"])[:, 0]
            values[changed] = self._view(sparse["values"], dtype, width, sparse["count"])
        if whole:
            if dtype.kind not in "iu":
                raise PointCloudError(f"accessor {index} holds {dtype} instead of numbers of vertices")
            return values
        values = values.astype(np.float64)
        if accessor.get("normalized") and dtype.kind in "iu":
            values = np.maximum(values / np.iinfo(dtype).max, -1)
        return values

    def _view(self, part: dict[str, Any], dtype: np.dtype, width: int, count: int) -> np.ndarray:
        """Look at the bytes of an accessor, or of the sparse part of one."""
        view = self.content["bufferViews"][part["bufferView"]]
        buffer = self.content["buffers"][view["buffer"]]
        if view["buffer"] != 0 or "uri" in buffer:
            raise PointCloudError("its data are in another file; export everything into one .glb file")
        offset, length = view.get("byteOffset", 0), view["byteLength"]
        if offset < 0 or length < 0 or offset + length > len(self.binary):
            raise PointCloudError(f"{length} bytes at {offset} go beyond its {len(self.binary)} bytes of data")
        inner = part.get("byteOffset", 0)
        size = dtype.itemsize * width
        stride = view.get("byteStride", size) or size
        if count < 0 or inner < 0 or stride < size or (count and inner + stride * (count - 1) + size > length):
            raise PointCloudError(f"{count} values of {size} bytes, {stride} apart, do not fit in {length} bytes")
        raw = np.frombuffer(self.binary, np.uint8, length, offset)[inner:]
        rows = np.lib.stride_tricks.as_strided(raw, (count, size), (stride, 1), writeable=False)
        return np.ascontiguousarray(rows).view(dtype).reshape(count, width)


def _matrix(node: dict) -> np.ndarray:
    """Give the matrix of a node, of shape `(4, 4)`, from its own or from translation, rotation and scale."""
    if "matrix" in node:
        return np.array(node["matrix"], dtype=np.float64).reshape(4, 4).T
    matrix = np.eye(4)
    x, y, z, w = np.array(node.get("rotation", (0, 0, 0, 1)), dtype=np.float64)
    rotation = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, :3] = np.array(rotation) * np.array(node.get("scale", (1, 1, 1)), dtype=np.float64)
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix
