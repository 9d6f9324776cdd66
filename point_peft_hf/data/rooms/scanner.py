"""A simulated scanner: what it sees from a few places, how densely, and with which errors."""

from __future__ import annotations

import numpy as np

# Edge of a cell of the depth image, in degrees.
_CELL = 1.1
_STRAY = 0.002


def scan(
    points: np.ndarray, colors: np.ndarray, places: np.ndarray, num_points: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scan densely sampled surfaces.

    A place sees the nearest points of each direction, fewer of them far away, and none right below itself. Distances
    have noise, each scan is off by a few millimetres, colours have noise and another brightness in each scan, and a
    few points lie between an edge and what is behind it.

    Args:
        points: Surfaces (N, 3).
        colors: Their colours (N, 3), from 0 to 1.
        places: Places of the scanner (P, 3).
        num_points: About how many points come out at most.
        rng: Random generator.

    Returns:
        Points (M, 3), float32; colours (M, 3), uint8; and which of the N points each one is, (M,).
    """
    seen = [_seen_from(points, place, rng) for place in places]
    chance = min(1.0, num_points / max(sum(len(rows) for rows, _ in seen), 1))
    parts = []
    for (rows, ray), place in zip(seen, places, strict=True):
        kept = rng.random(len(rows)) < chance
        rows, ray = rows[kept], ray[kept]
        distance = np.sqrt((ray**2).sum(axis=1))
        error = rng.normal(0, 0.003 + 0.001 * distance)
        stray = rng.random(len(rows)) < _STRAY
        error[stray] -= rng.random(int(stray.sum())) * 0.4
        moved = place + ray * (1 + error / np.maximum(distance, 0.1))[:, None] + rng.normal(0, 0.003, 3)
        light = rng.uniform(0.8, 1.1) * (1.08 - 0.03 * distance)
        color = colors[rows] * light[:, None] + rng.normal(0, 0.025, (len(rows), 3))
        parts.append((moved.astype(np.float32), (255 * color).clip(0, 255).astype(np.uint8), rows))
    order = rng.permutation(sum(len(part[2]) for part in parts))
    found, shades, rows = (np.concatenate([part[index] for part in parts])[order] for index in range(3))
    return found, shades, rows


def _seen_from(points: np.ndarray, place: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Give the numbers of the points that a place sees, thinned by their distance, and the rays to them."""
    ray = points - place
    distance = np.sqrt((ray**2).sum(axis=1))
    columns = round(360 / _CELL)
    azimuth = ((np.arctan2(ray[:, 1], ray[:, 0]) / (2 * np.pi) + 0.5) * columns).astype(np.int32)
    height = ray[:, 2] / np.maximum(distance, 1e-6)
    # Rows of equal height on the sphere have cells of equal area.
    row = ((height + 1) * 0.5 * (360 / _CELL / np.pi)).astype(np.int32)
    cell = row * (columns + 1) + azimuth
    nearest = np.full(int(cell.max()) + 1, np.inf)
    np.minimum.at(nearest, cell, distance)
    seen = distance <= nearest[cell] * 1.03 + 0.04
    seen &= height > -0.88
    density = np.minimum(1.0, (1.6 / np.maximum(distance, 0.3)) ** 1.3)
    seen &= rng.random(len(points)) < density
    rows = np.flatnonzero(seen)
    return rows, ray[rows]
