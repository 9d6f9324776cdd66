"""Parametric surface primitives that are sampled uniformly by area, in numpy only.

Every primitive is reduced to one of two kinds of patch, so that a whole object is sampled by a handful of vectorised
operations whatever the number of its parts:

* flat patches: parallelograms and triangles (boxes, plates, prisms);
* conical sectors: the surface between two circular or elliptical arcs (cylinders, cones, discs, surfaces of
  revolution, ellipsoids, tubes along a curve, tori).

Coordinates are right-handed with the y axis up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .geometry import TWO_PI, Vector, cross, frame

# Corner of each of the six faces of a box, in half-axes, and the half-axes that span the face from there.
_FACE_ORIGIN = np.array([[1, -1, -1], [-1, -1, -1], [-1, 1, -1], [-1, -1, -1], [-1, -1, 1], [-1, -1, -1]], dtype=float)
_FACE_U = np.array([1, 1, 2, 2, 0, 0])
_FACE_V = np.array([2, 2, 0, 0, 1, 1])
# An elliptical ring has no constant area per angle; this many sectors per turn keep the density error under 2 %.
_SECTORS_PER_TURN = 16


class Surface:
    """A union of parametric surface parts that can be sampled uniformly by area.

    Parts are added with the methods below; overlaps are kept, so points may lie inside another part.
    """

    def __init__(self) -> None:
        self._boxes: list[tuple[float, ...]] = []  # centre, three half-axes
        self._box_blocks: list[np.ndarray] = []
        self._flat_blocks: list[np.ndarray] = []  # origin, u, v, 1 for a triangle
        self._cones: list[tuple[float, ...]] = []  # two centres, e1, e2, two radii, two angles
        self._cone_blocks: list[np.ndarray] = []

    # ------------------------------------------------------------------ flat parts

    def box(self, center: Vector, size: Vector, rotation: np.ndarray | None = None) -> None:
        """Add a closed box.

        Args:
            center: Centre (3,).
            size: Edge lengths (3,) along x, y and z before rotation.
            rotation: Rotation (3, 3) about the centre (default: none).
        """
        x, y, z = center
        a, b, c = 0.5 * size[0], 0.5 * size[1], 0.5 * size[2]
        if rotation is None:
            self._boxes.append((x, y, z, a, 0.0, 0.0, 0.0, b, 0.0, 0.0, 0.0, c))
        else:
            r = rotation.tolist()
            axes = [r[i][j] * half for j, half in enumerate((a, b, c)) for i in range(3)]
            self._boxes.append((x, y, z, *axes))

    def beam(self, start: Vector, end: Vector, width: float, depth: float) -> None:
        """Add a box whose long axis runs from one point to another.

        Args:
            start: Centre of one end face (3,).
            end: Centre of the other end face (3,).
            width: Edge of the cross-section in the horizontal direction (along x for a vertical beam).
            depth: The other edge of the cross-section.
        """
        d = [0.5 * (e - s) for s, e in zip(start, end, strict=True)]
        _, e1, e2 = frame(d)
        w, h = 0.5 * width, 0.5 * depth
        center = [s + half for s, half in zip(start, d, strict=True)]
        self._boxes.append((*center, *d, e1[0] * w, e1[1] * w, e1[2] * w, e2[0] * h, e2[1] * h, e2[2] * h))

    def plate(self, origin: Vector, u: Vector, v: Vector, triangle: bool = False) -> None:
        """Add an infinitely thin parallelogram, or the triangle that is one half of it.

        Args:
            origin: Corner (3,).
            u: First edge from the corner (3,).
            v: Second edge from the corner (3,).
            triangle: Keep only the half next to the corner (default False).
        """
        self._flat_blocks.append(np.array([[*origin, *u, *v, float(triangle)]]))

    def prism(
        self,
        polygon: np.ndarray | Sequence[Vector],
        origin: Vector,
        e1: Vector,
        e2: Vector,
        extrude: Vector,
        top_scale: float = 1.0,
        caps: bool = True,
    ) -> None:
        """Add a polygon extruded along a vector, optionally tapered.

        Args:
            polygon: Corners (N, 2); the polygon must be star-shaped around the mean of its corners.
            origin: Point (3,) that the polygon's (0, 0) is mapped to, half-way up the extrusion.
            e1: Direction (3,) of the polygon's first coordinate.
            e2: Direction (3,) of the polygon's second coordinate.
            extrude: Extrusion vector (3,), from the bottom to the top.
            top_scale: Size of the top relative to the bottom (default 1; 0 gives a pyramid).
            caps: Whether bottom and top are closed (default True).
        """
        corners = np.asarray(polygon, dtype=float)
        middle = corners.mean(axis=0)
        plane = np.array([e1, e2], dtype=float)
        height = np.asarray(extrude, dtype=float)
        base = np.asarray(origin, dtype=float) - 0.5 * height
        bottom = corners @ plane + base
        top = (middle + (corners - middle) * top_scale) @ plane + base + height
        following = np.roll(bottom, -1, axis=0)
        triangles = []
        if top_scale == 1.0:
            sides = np.zeros((len(corners), 10))
            sides[:, :3], sides[:, 3:6], sides[:, 6:9] = bottom, following - bottom, height
            self._flat_blocks.append(sides)
        else:
            top_following = np.roll(top, -1, axis=0)
            triangles += [(bottom, following, top), (top_following, top, following)]
        if caps:
            hub = middle @ plane + base
            triangles.append((np.broadcast_to(hub, bottom.shape), bottom, following))
            triangles.append((np.broadcast_to(hub + height, top.shape), top, np.roll(top, -1, axis=0)))
        for a, b, c in triangles:
            block = np.ones((len(corners), 10))
            block[:, :3], block[:, 3:6], block[:, 6:9] = a, b - a, c - a
            self._flat_blocks.append(block)

    def strip(self, first: np.ndarray | Sequence[Vector], second: np.ndarray | Sequence[Vector]) -> None:
        """Add the ruled surface between two polylines, as pairs of triangles.

        Args:
            first: Points (N, 3); repeat the first point at the end for a closed strip.
            second: Points (N, 3) opposite to them.
        """
        a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
        block = np.ones((2, len(a) - 1, 10))
        block[0, :, :3], block[0, :, 3:6], block[0, :, 6:9] = a[:-1], a[1:] - a[:-1], b[:-1] - a[:-1]
        block[1, :, :3], block[1, :, 3:6], block[1, :, 6:9] = b[1:], a[1:] - b[1:], b[:-1] - b[1:]
        self._flat_blocks.append(block.reshape(-1, 10))

    def band(
        self, inner: np.ndarray, outer: np.ndarray, origin: Vector, e1: Vector, e2: Vector, extrude: Vector
    ) -> None:
        """Add the region between two open or closed plane polylines, extruded along a vector.

        Args:
            inner: Points (N, 2).
            outer: Points (N, 2) opposite to them.
            origin: Point (3,) that (0, 0) is mapped to, half-way up the extrusion.
            e1: Direction (3,) of the first coordinate.
            e2: Direction (3,) of the second coordinate.
            extrude: Extrusion vector (3,).
        """
        plane, height = np.array([e1, e2], dtype=float), np.asarray(extrude, dtype=float)
        low = np.asarray(origin, dtype=float) - 0.5 * height
        a, b = inner @ plane + low, outer @ plane + low
        # Around the cross-section: lower face, outer wall, upper face, inner wall.
        loop = np.stack([a, b, b + height, a + height, a])
        first, second = loop[:-1], loop[1:]
        block = np.ones((2, 4, len(a) - 1, 10))
        block[0, ..., :3], block[1, ..., :3] = first[:, :-1], second[:, 1:]
        block[0, ..., 3:6], block[0, ..., 6:9] = first[:, 1:] - first[:, :-1], second[:, :-1] - first[:, :-1]
        block[1, ..., 3:6], block[1, ..., 6:9] = first[:, 1:] - second[:, 1:], second[:, :-1] - second[:, 1:]
        self._flat_blocks.append(block.reshape(-1, 10))

    # ------------------------------------------------------------------ round parts

    def frustum(self, start: Vector, end: Vector, r0: float, r1: float | None = None, caps: bool = True) -> None:
        """Add a cylinder, cone or truncated cone.

        Args:
            start: Centre of one end (3,).
            end: Centre of the other end (3,).
            r0: Radius at the start.
            r1: Radius at the end (default: `r0`, a cylinder).
            caps: Whether both ends are closed by discs (default True).
        """
        r1 = r0 if r1 is None else r1
        _, e1, e2 = frame([e - s for s, e in zip(start, end, strict=True)])
        axes = (*e1, *e2)
        self._cones.append((*start, *end, *axes, r0, r1, 0.0, TWO_PI))
        if caps:
            self._cones.append((*start, *start, *axes, 0.0, r0, 0.0, TWO_PI))
            self._cones.append((*end, *end, *axes, 0.0, r1, 0.0, TWO_PI))

    def lathe(
        self,
        profile: np.ndarray | Sequence[Vector],
        origin: Vector = (0.0, 0.0, 0.0),
        axis: Vector = (0.0, 1.0, 0.0),
        scale: tuple[float, float] = (1.0, 1.0),
        arc: tuple[float, float] = (0.0, TWO_PI),
        e1: Vector | None = None,
    ) -> None:
        """Add a surface of revolution.

        Args:
            profile: Pairs (N, 2) of radius and position along the axis.
            origin: Point (3,) at position 0 of the axis.
            axis: Direction (3,) of the axis (default: up).
            scale: Factors of the radius along `e1` and across it (default: circular).
            arc: First and last angle in radians, from `e1` (default: the full turn).
            e1: Unit direction (3,) of angle 0, perpendicular to the axis (default: x for a vertical axis).
        """
        points = np.asarray(profile, dtype=float)
        unit, f1, f2 = frame(axis)
        if e1 is not None:
            f1 = tuple(float(value) for value in e1)
            f2 = tuple(cross(np.array(unit), np.array(f1)).tolist())
        count = 1
        if scale[0] != scale[1] or arc[1] - arc[0] < 6.28:
            count = max(1, round(_SECTORS_PER_TURN * abs(arc[1] - arc[0]) / TWO_PI))
        edges = np.linspace(arc[0], arc[1], count + 1)
        centers = np.asarray(origin, dtype=float) + points[:, 1:] * np.array(unit)
        block = np.empty((count, len(points) - 1, 16))
        block[..., :3], block[..., 3:6] = centers[:-1], centers[1:]
        block[..., 6:9] = [scale[0] * value for value in f1]
        block[..., 9:12] = [scale[1] * value for value in f2]
        block[..., 12], block[..., 13] = points[:-1, 0], points[1:, 0]
        block[..., 14], block[..., 15] = edges[:-1, None], edges[1:, None]
        self._cone_blocks.append(block.reshape(-1, 16))

    def ellipsoid(self, center: Vector, radii: Vector, lower: float = -1.0, upper: float = 1.0) -> None:
        """Add an ellipsoid, or the part of it between two heights.

        Args:
            center: Centre (3,).
            radii: Semi-axes (3,) along x, y and z.
            lower: Lower end in units of the vertical semi-axis (default -1: closed).
            upper: Upper end in units of the vertical semi-axis (default 1: closed).
        """
        latitude = np.linspace(math.asin(lower), math.asin(upper), 11)
        profile = np.stack([np.cos(latitude), radii[1] * np.sin(latitude)], axis=1)
        self.lathe(profile, center, scale=(radii[0], radii[2]))

    def tube(self, path: np.ndarray | Sequence[Vector], radius: float | np.ndarray, caps: bool = False) -> None:
        """Add a round tube along a polyline.

        Args:
            path: Points (N, 3) of the centre line.
            radius: Radius, one for all points or one for each (N,).
            caps: Whether both ends are closed by discs (default False).
        """
        points = np.asarray(path, dtype=float)
        radii = np.broadcast_to(np.asarray(radius, dtype=float), (len(points),))
        delta = points[1:] - points[:-1]
        delta = delta / np.maximum(np.sqrt((delta * delta).sum(axis=1, keepdims=True)), 1e-12)
        # The coordinate axis farthest from the tangent is never parallel to it.
        helper = np.zeros_like(delta)
        helper[np.arange(len(delta)), np.abs(delta).argmin(axis=1)] = 1.0
        e1 = cross(delta, helper)
        e1 /= np.sqrt((e1 * e1).sum(axis=1, keepdims=True))
        block = np.empty((len(delta), 16))
        block[:, :3], block[:, 3:6] = points[:-1], points[1:]
        block[:, 6:9], block[:, 9:12] = e1, cross(delta, e1)
        block[:, 12], block[:, 13], block[:, 14], block[:, 15] = radii[:-1], radii[1:], 0.0, TWO_PI
        self._cone_blocks.append(block)
        if caps:
            ends = block[[0, -1]]
            ends[0, 3:6], ends[1, :3] = ends[0, :3], ends[1, 3:6]
            ends[0, 13], ends[1, 12] = 0.0, 0.0
            self._cone_blocks.append(ends)

    def ring(
        self,
        center: Vector,
        radius: float,
        thickness: float,
        axis: Vector = (0.0, 1.0, 0.0),
        arc: tuple[float, float] = (0.0, TWO_PI),
        segments: int = 24,
    ) -> None:
        """Add a torus or a part of one.

        Args:
            center: Centre (3,).
            radius: Distance from the centre to the tube's centre line.
            thickness: Radius of the tube.
            axis: Axis of revolution (3,) (default: up).
            arc: First and last angle in radians (default: the full turn).
            segments: Number of straight pieces (default 24).
        """
        _, e1, e2 = frame(axis)
        angle = np.linspace(arc[0], arc[1], segments + 1)[:, None]
        path = np.asarray(center) + radius * (np.cos(angle) * np.array(e1) + np.sin(angle) * np.array(e2))
        self.tube(path, thickness)

    # ------------------------------------------------------------------ assembly and sampling

    def add(self, other: Surface, rotation: np.ndarray | None = None, translation: Vector = (0.0, 0.0, 0.0)) -> None:
        """Add the parts of another surface, moved rigidly.

        Args:
            other: Surface to copy the parts of.
            rotation: Rotation (3, 3) about the origin, applied first (default: none).
            translation: Translation (3,), applied second (default: none).
        """
        turn = np.eye(3) if rotation is None else rotation
        boxes, flats, cones = other._arrays()
        for blocks, rows, vectors, points in (
            (self._box_blocks, boxes, 4, (0,)),
            (self._flat_blocks, flats, 3, (0,)),
            (self._cone_blocks, cones, 4, (0, 1)),
        ):
            if len(rows):
                moved = rows.copy()
                block = rows[:, : 3 * vectors].reshape(-1, vectors, 3) @ turn.T
                block[:, points] += np.asarray(translation, dtype=float)
                moved[:, : 3 * vectors] = block.reshape(len(rows), -1)
                blocks.append(moved)

    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return all boxes (B, 12), flat patches (F, 10) and conical sectors (C, 16)."""
        boxes = self._box_blocks + ([np.array(self._boxes)] if self._boxes else [])
        cones = self._cone_blocks + ([np.array(self._cones)] if self._cones else [])
        return (
            np.concatenate(boxes) if boxes else np.empty((0, 12)),
            np.concatenate(self._flat_blocks) if self._flat_blocks else np.empty((0, 10)),
            np.concatenate(cones) if cones else np.empty((0, 16)),
        )

    def _patches(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all flat patches (F, 10), with the faces of the boxes, and conical sectors (C, 16)."""
        boxes, flats, cones = self._arrays()
        if len(boxes):
            axes = boxes[:, 3:].reshape(-1, 3, 3)
            faces = np.zeros((len(boxes), 6, 10))
            faces[..., :3] = boxes[:, None, :3] + _FACE_ORIGIN @ axes
            faces[..., 3:6], faces[..., 6:9] = 2.0 * axes[:, _FACE_U], 2.0 * axes[:, _FACE_V]
            flats = np.concatenate([faces.reshape(-1, 10), flats])
        return flats, cones

    @property
    def area(self) -> float:
        """Area of all parts together, in the square of their unit."""
        flats, cones = self._patches()
        return float(_flat_areas(flats).sum() + _cone_areas(cones).sum())

    def sample(self, num_points: int, rng: np.random.Generator) -> np.ndarray:
        """Draw points uniformly by area, in random order.

        The patch of each point is drawn by stratified sampling: the expected density is that of independent draws, the
        counts per part vary less.

        Args:
            num_points: Number of points N.
            rng: Random generator.

        Returns:
            Points (N, 3), float64, in the units of the parts.

        Raises:
            ValueError: If `num_points` is below 1 or the surface has no area.
        """
        if num_points < 1:
            raise ValueError(f"num_points must be at least 1, got {num_points}. Ask for one point or more.")
        flats, cones = self._patches()
        total = np.cumsum(np.concatenate([_flat_areas(flats), _cone_areas(cones)]))
        if not len(total) or not total[-1] > 0.0:
            raise ValueError("The surface has no area to sample. Add at least one part with a positive size.")
        ticks = (np.arange(num_points) + rng.random(num_points)) * (total[-1] / num_points)
        index = np.minimum(np.searchsorted(total, ticks, side="right"), len(total) - 1)
        on_flats = int(np.searchsorted(index, len(flats)))  # `index` is sorted
        a, b = rng.random((2, num_points))
        # One row per coordinate: column-wise arithmetic on short rows of three is several times slower.
        points = np.empty((3, num_points))
        points[:, :on_flats] = _flat_points(flats.T.take(index[:on_flats], axis=1), a[:on_flats], b[:on_flats])
        which = index[on_flats:] - len(flats)
        points[:, on_flats:] = _cone_points(cones.T.take(which, axis=1), a[on_flats:], b[on_flats:])
        return points.T[rng.permutation(num_points)]


def _flat_areas(flats: np.ndarray) -> np.ndarray:
    """Areas (F,) of the flat patches (F, 10)."""
    normal = cross(flats[:, 3:6], flats[:, 6:9])
    return np.sqrt(np.einsum("ij,ij->i", normal, normal)) * (1.0 - 0.5 * flats[:, 9])


def _flat_points(flats: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Points (3, N) at the uniform parameters a and b (N,) of one flat patch each (10, N)."""
    fold = (flats[9] > 0.0) & (a + b > 1.0)
    a, b = np.where(fold, 1.0 - a, a), np.where(fold, 1.0 - b, b)
    return flats[:3] + a * flats[3:6] + b * flats[6:9]


def _cone_areas(cones: np.ndarray) -> np.ndarray:
    """Areas (C,) of the conical sectors (C, 16): exact if circular and upright, else by the midpoint rule."""
    middle = 0.5 * (cones[:, 14] + cones[:, 15])
    c, s = np.cos(middle)[:, None], np.sin(middle)[:, None]
    r0, r1 = cones[:, 12:13], cones[:, 13:14]
    along = cones[:, 3:6] - cones[:, :3] + (r1 - r0) * (c * cones[:, 6:9] + s * cones[:, 9:12])
    around = 0.5 * (r0 + r1) * (c * cones[:, 9:12] - s * cones[:, 6:9])
    normal = cross(along, around)
    return np.sqrt(np.einsum("ij,ij->i", normal, normal)) * np.abs(cones[:, 15] - cones[:, 14])


def _cone_points(cones: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Points (3, N) at the uniform parameters a and b (N,) of one conical sector each (16, N)."""
    r0, r1 = cones[12], cones[13]
    # The area up to t is proportional to (r0 + r(t)) * t; solved for t in the form that has no 0 / 0 for a cylinder.
    t = a * (r0 + r1) / np.maximum(r0 + np.sqrt(r0 * r0 + a * (r1 * r1 - r0 * r0)), 1e-12)
    angle = cones[14] + b * (cones[15] - cones[14])
    radius = r0 + t * (r1 - r0)
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    return cones[:3] + t * (cones[3:6] - cones[:3]) + x * cones[6:9] + y * cones[9:12]
