"""Random assemblies of primitives: shapes of no class, to pre-train on. Units are arbitrary; y is up.

Objects have parts that touch, are often symmetric, and reach from blocks to thin bars; so do these. That a masked
autoencoder learns from such shapes about as well as from CAD models was shown for Point-MAE by "Learning 3D
Representations from Procedural 3D Programs" (arXiv 2411.17467).
"""

from __future__ import annotations

import math

import numpy as np

from .geometry import TWO_PI, bezier, regular_polygon, rotation_matrix
from .primitives import Surface

_X, _Y, _Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
_LARGEST_PART, _SMALLEST_PART = 1.2, 0.06
# Shares of the parts that are mirrored, mirrored twice, or turned about the axis; the rest stands alone.
_MIRRORED, _MIRRORED_TWICE, _TURNED = 0.35, 0.12, 0.13


def _block(s: Surface, rng: np.random.Generator, half: np.ndarray) -> None:
    """Closed box."""
    s.box((0.0, 0.0, 0.0), 2.0 * half)


def _shell(s: Surface, rng: np.random.Generator, half: np.ndarray) -> None:
    """Box of thin walls that is open at one, two or three of its faces."""
    x, y, z = half
    faces = [
        ((-x, -y, -z), (2 * x, 0, 0), (0, 0, 2 * z)),
        ((-x, -y, -z), (0, 2 * y, 0), (0, 0, 2 * z)),
        ((x, -y, -z), (0, 2 * y, 0), (0, 0, 2 * z)),
        ((-x, -y, -z), (2 * x, 0, 0), (0, 2 * y, 0)),
        ((-x, -y, z), (2 * x, 0, 0), (0, 2 * y, 0)),
        ((-x, y, -z), (2 * x, 0, 0), (0, 0, 2 * z)),
    ]
    for i in rng.permutation(6)[: int(rng.integers(3, 6))]:
        s.plate(*faces[i])


def _ball(s: Surface, rng: np.random.Generator, half: np.ndarray) -> None:
    """Ellipsoid, or a part of one that is cut flat."""
    lower = -1.0 if rng.random() < 0.6 else float(rng.uniform(-0.7, 0.3))
    s.ellipsoid((0.0, 0.0, 0.0), half, lower=lower)


def _cylinder(s: Surface, rng: np.random.Generator, half: np.ndarray) -> None:
    """Elliptical cylinder, cone or part of a cone, open or closed, sometimes a part of the turn only."""
    ends = [1.0, 1.0] if rng.random() < 0.5 else rng.uniform(0.0, 1.0, 2).tolist()
    profile = [(ends[0], -half[1]), (ends[1], half[1])]
    if rng.random() < 0.7:
        profile = [(0.0, -half[1]), *profile, (0.0, half[1])]
    turn = TWO_PI if rng.random() < 0.85 else float(rng.uniform(0.4, 0.8)) * TWO_PI
    s.lathe(profile, scale=(half[0], half[2]), arc=(0.0, turn))


def _turned(s: Surface, rng: np.random.Generator, half: np.ndarray) -> None:
    """Surface of revolution with a random curve or random steps as its profile."""
    count = int(rng.integers(3, 7))
    heights = np.linspace(-half[1], half[1], count)
    controls = np.stack([rng.uniform(0.1, 1.0, count), heights], axis=1)
    if rng.random() < 0.6:
        profile = bezier(controls, 12)
    else:  # each radius is kept up to the next height
        profile = np.repeat(controls, 2, axis=0)
        profile[1:-1:2, 1] = profile[2::2, 1]
    profile[:, 0] /= profile[:, 0].max()
    s.lathe(profile, scale=(half[0], half[2]))


def _prism(s: Surface, rng: np.random.Generator, half: np.ndarray) -> None:
    """Extruded polygon: regular, a star, or random; sometimes tapered."""
    kind, sides = rng.random(), int(rng.integers(3, 9))
    if kind < 0.4:
        polygon = regular_polygon(sides, 1.0, rng.uniform(0.0, TWO_PI))
    else:
        sides = 2 * sides if kind < 0.6 else sides
        polygon = regular_polygon(sides)
        reach = (
            np.where(np.arange(sides) % 2, rng.uniform(0.3, 0.8), 1.0) if kind < 0.6 else rng.uniform(0.4, 1, sides)
        )
        polygon = polygon * reach[:, None]
    polygon = polygon / np.abs(polygon).max(axis=0) * half[[0, 2]]
    scale = 1.0 if rng.random() < 0.6 else float(rng.uniform(0.0, 1.2))
    s.prism(polygon, (0.0, 0.0, 0.0), _X, _Z, (0.0, 2.0 * half[1], 0.0), top_scale=scale, caps=rng.random() < 0.8)


def _bar(s: Surface, rng: np.random.Generator, half: np.ndarray) -> None:
    """Tube along a random curve from the bottom to the top, of varying thickness."""
    inner = rng.uniform(-1.0, 1.0, (int(rng.integers(0, 3)), 3)) * half
    ends = rng.uniform(-1.0, 1.0, (2, 3)) * half
    ends[:, 1] = -half[1], half[1]
    path = bezier([ends[0], *inner, ends[1]], 10)
    thick = 0.25 * float(rng.uniform(0.15, 0.6)) * np.sqrt(half.min() * half.max())
    s.tube(path, np.linspace(thick, thick * rng.uniform(0.3, 1.0), 10), caps=True)


def _ring(s: Surface, rng: np.random.Generator, half: np.ndarray) -> None:
    """Torus about y, or an arc of one."""
    radius = float(np.sqrt(half[0] * half[2]))
    turn = TWO_PI if rng.random() < 0.6 else float(rng.uniform(0.3, 0.8)) * TWO_PI
    s.ring((0.0, 0.0, 0.0), radius, radius * float(rng.uniform(0.04, 0.35)), arc=(0.0, turn))


def _frame(s: Surface, rng: np.random.Generator, half: np.ndarray) -> None:
    """Rectangle of beams, with bars across."""
    x, y, z = half
    width = float(rng.uniform(0.08, 0.25)) * min(x, y)
    for side in (-1.0, 1.0):
        s.box((side * x, 0.0, 0.0), (width, 2.0 * y + width, 2.0 * z))
        s.box((0.0, side * y, 0.0), (2.0 * x, width, 2.0 * z))
    for height in np.linspace(-y, y, int(rng.integers(2, 7)))[1:-1]:
        s.box((0.0, height, 0.0), (2.0 * x, width, 2.0 * z))


def _stack(s: Surface, rng: np.random.Generator, half: np.ndarray) -> None:
    """Plates above each other, such as shelves, or steps when they shrink."""
    count, shrink = int(rng.integers(2, 7)), float(rng.choice([1.0, rng.uniform(0.6, 0.95)]))
    thick = float(rng.uniform(0.15, 0.9)) * 2.0 * half[1] / count
    for i, height in enumerate(np.linspace(-half[1], half[1], count)):
        scale = shrink**i
        s.box((0.0, height, 0.0), (2.0 * half[0] * scale, thick, 2.0 * half[2] * scale))


_PARTS = (_block, _block, _shell, _ball, _cylinder, _cylinder, _turned, _prism, _bar, _ring, _frame, _stack)


def _rotations(rng: np.random.Generator) -> np.ndarray:
    """Which way the y axis of a part points, and seldom a tilt: a rotation (3, 3)."""
    turn = (np.eye(3), rotation_matrix("x", 0.5 * math.pi), rotation_matrix("z", 0.5 * math.pi))[int(rng.integers(3))]
    if rng.random() < 0.25:
        turn = rotation_matrix("xyz"[int(rng.integers(3))], rng.uniform(-0.7, 0.7)) @ turn
    return turn


def _copies(rng: np.random.Generator, center: np.ndarray) -> list[np.ndarray]:
    """How a part is repeated about the axis of the assembly: orthogonal matrices (3, 3), the identity first."""
    mirror_x, mirror_z = np.diag([-1.0, 1.0, 1.0]), np.diag([1.0, 1.0, -1.0])
    kind = rng.random()
    if kind < _MIRRORED:
        return [np.eye(3), mirror_x]
    if kind < _MIRRORED + _MIRRORED_TWICE:
        return [np.eye(3), mirror_x, mirror_z, mirror_x @ mirror_z]
    if kind < _MIRRORED + _MIRRORED_TWICE + _TURNED and np.hypot(center[0], center[2]) > 0.05:
        count = int(rng.integers(3, 9))
        return [rotation_matrix("y", TWO_PI * i / count) for i in range(count)]
    return [np.eye(3)]


def assembly(rng: np.random.Generator) -> Surface:
    """One to eight random parts, each placed against an earlier one, alone or repeated symmetrically."""
    whole = Surface()
    placed: list[tuple[np.ndarray, np.ndarray]] = []  # centre and half extents (3,) of the box around each part
    for _ in range(int(rng.integers(1, 9))):
        largest = _LARGEST_PART if not placed else 0.8 * _LARGEST_PART
        half = 0.5 * np.exp(rng.uniform(math.log(_SMALLEST_PART), math.log(largest), 3))
        part, turn = Surface(), _rotations(rng)
        _PARTS[int(rng.integers(len(_PARTS)))](part, rng, half)
        reach = np.abs(turn) @ half
        center = np.zeros(3)
        if placed:
            base, extent = placed[int(rng.integers(len(placed)))]
            axis, sign = int(rng.integers(3)), float(rng.choice([-1.0, 1.0]))
            # Along each of the other two axes in the middle of the other part, at its rim, or anywhere on it.
            kind, free = rng.random(3), rng.uniform(-1.0, 1.0, 3)
            shift = np.where(kind < 0.5, 0.0, np.where(kind < 0.7, 0.9 * np.sign(free), free))
            center = base + shift * extent
            center[axis] = base[axis] + sign * (extent[axis] + rng.uniform(0.5, 1.0) * reach[axis])
        placed.append((center, reach))
        for copy in _copies(rng, center):
            whole.add(part, copy @ turn, copy @ center)
    return whole
