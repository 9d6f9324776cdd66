"""Corruptions that turn a clean, complete cloud into what a range scanner would have returned."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

import numpy as np

# Cells per side of the z-buffer, per square root of the number of points: about three points of the visible side then
# fall into a cell, which keeps the far side from showing through gaps.
_CELLS_PER_ROOT = 0.44
# In cells. Smaller values start to tear surfaces seen at a grazing angle, larger ones let the back of boxes through.
_DEPTH_GAP = 1.0


def _check_range(name: str, value: float, upper: float = 1.0, below: bool = False) -> None:
    """Raise ValueError unless value is between 0 and `upper` (or below it) and finite."""
    if not 0.0 <= value <= upper or math.isinf(value) or (below and value == upper):
        raise ValueError(
            f"{name} must be between 0 and {upper:g}{' (below)' if below else ''}, got {value!r}. "
            "Use 0 to switch this corruption off."
        )


def normalize_unit_sphere(points: np.ndarray) -> np.ndarray:
    """Centre a cloud on its mean and scale it so that its farthest point has norm 1.

    Args:
        points: Cloud (N, 3).

    Returns:
        Cloud (N, 3), float32. A cloud of one repeated point becomes all zeros.
    """
    # One row per coordinate: numpy reduces long rows several times faster than rows of three.
    rows = np.ascontiguousarray(points.T, dtype=np.float64)
    rows -= rows.mean(axis=1, keepdims=True)
    radius = math.sqrt(float(np.einsum("ij,ij->j", rows, rows).max()))
    return np.ascontiguousarray((rows / (radius if radius > 1e-12 else 1.0)).T, dtype=np.float32)


def rotate_about_up(points: np.ndarray, rng: np.random.Generator, max_angle: float = 180.0) -> np.ndarray:
    """Rotate a cloud about the y axis by a random angle.

    Args:
        points: Cloud (N, 3), y up.
        rng: Random generator.
        max_angle: Largest absolute angle in degrees (default 180: any angle).

    Returns:
        Rotated cloud (N, 3).

    Raises:
        ValueError: If `max_angle` is outside its range.
    """
    _check_range("max_angle", max_angle, 180.0)
    angle = math.radians(rng.uniform(-max_angle, max_angle))
    c, s = math.cos(angle), math.sin(angle)
    return points @ np.array([[c, 0.0, -s], [0.0, 1.0, 0.0], [s, 0.0, c]])


def tilt(points: np.ndarray, rng: np.random.Generator, max_angle: float = 10.0) -> np.ndarray:
    """Tilt a cloud about a random horizontal axis, as an object that does not stand upright.

    Args:
        points: Cloud (N, 3), y up.
        rng: Random generator.
        max_angle: Largest tilt in degrees (default 10).

    Returns:
        Tilted cloud (N, 3).

    Raises:
        ValueError: If `max_angle` is outside its range.
    """
    _check_range("max_angle", max_angle, 180.0)
    heading, angle = rng.uniform(0.0, 2.0 * math.pi), math.radians(rng.uniform(0.0, max_angle))
    c, s = math.cos(heading), math.sin(heading)
    to_axis = np.array([[c, 0.0, -s], [0.0, 1.0, 0.0], [s, 0.0, c]])
    ca, sa = math.cos(angle), math.sin(angle)
    about_x = np.array([[1.0, 0.0, 0.0], [0.0, ca, sa], [0.0, -sa, ca]])
    return points @ (to_axis @ about_x @ to_axis.T)


def remove_hidden_points(points: np.ndarray, rng: np.random.Generator, fraction: float = 1.0) -> np.ndarray:
    """Keep what a camera in a random direction sees, by a z-buffer over a coarse image.

    The camera is far away, between 10 degrees below and 60 degrees above the horizon. Along the points of one cell of
    the image, from the camera on, everything behind the first gap in depth of one cell is hidden. A
    threshold on the depth itself would cut stripes out of surfaces seen at a grazing angle.

    Args:
        points: Cloud (N, 3), y up, dense (a few thousand points): sparse surfaces let the far side through.
        rng: Random generator.
        fraction: Part of the hidden points to remove, 0 to 1 (default 1).

    Returns:
        Remaining points (M, 3), M <= N, at least one.

    Raises:
        ValueError: If `fraction` is outside its range.
    """
    _check_range("fraction", fraction)
    azimuth, elevation = rng.uniform(0.0, 2.0 * math.pi), math.radians(rng.uniform(-10.0, 60.0))
    ca, sa, ce, se = math.cos(azimuth), math.sin(azimuth), math.cos(elevation), math.sin(elevation)
    # Rows: image right, image up, direction to the camera.
    view = np.array([[ca, 0.0, -sa], [-sa * se, ce, -ca * se], [sa * ce, se, ca * ce]]) @ points.T
    low, high = view.min(axis=1), view.max(axis=1)
    extent = float(max(high[0] - low[0], high[1] - low[1], 1e-9))
    side = max(4, int(_CELLS_PER_ROOT * math.sqrt(len(points))))
    cell = np.minimum(((view[:2] - low[:2, None]) * (side / extent)).astype(np.int64), side - 1)
    depth = high[2] - view[2]
    cell_id = cell[0] * side + cell[1]
    # One sort by (cell, depth).
    order = np.argsort(cell_id * (float(depth.max()) + 1.0) + depth)
    cell_id, depth = cell_id[order], depth[order]
    starts = np.ones(len(points), dtype=bool)
    starts[1:] = cell_id[1:] != cell_id[:-1]
    gaps = np.zeros(len(points), dtype=np.int64)
    gaps[1:] = np.cumsum(~starts[1:] & (np.diff(depth) > _DEPTH_GAP * extent / side))
    visible = np.empty(len(points), dtype=bool)
    visible[order] = gaps == np.maximum.accumulate(np.where(starts, gaps, 0))
    if fraction < 1.0:
        visible |= rng.random(len(points)) >= fraction
    return points[visible]


def cut_holes(points: np.ndarray, rng: np.random.Generator, fraction: float = 0.1, num_holes: int = 2) -> np.ndarray:
    """Remove ball-shaped regions around random points, as missing returns or occluders do.

    Args:
        points: Cloud (N, 3).
        rng: Random generator.
        fraction: Part of the points to remove over all holes, 0 to below 1 (default 0.1).
        num_holes: Number of holes (default 2).

    Returns:
        Remaining points (M, 3), at least one.

    Raises:
        ValueError: If `fraction` is outside its range.
    """
    _check_range("fraction", fraction, below=True)
    size = int(fraction * len(points) / max(num_holes, 1))
    for _ in range(num_holes):
        if size < 1 or len(points) <= size:
            break
        offset = points - points[rng.integers(len(points))]
        distance = np.einsum("ij,ij->i", offset, offset)
        points = points[np.argpartition(distance, size)[size:]]
    return points


def thin_density(points: np.ndarray, rng: np.random.Generator, strength: float = 0.5) -> np.ndarray:
    """Thin a cloud out along a random direction, as the density of a scan falls with distance.

    Args:
        points: Cloud (N, 3).
        rng: Random generator.
        strength: Part of the points removed at the far end, 0 to 1 (default 0.5); nothing is removed at the near end.

    Returns:
        Remaining points (M, 3), at least one.

    Raises:
        ValueError: If `strength` is outside its range.
    """
    _check_range("strength", strength)
    direction = rng.normal(size=3)
    depth = points @ direction
    low, span = float(depth.min()), float(np.ptp(depth))
    keep = rng.random(len(points)) >= strength * (depth - low) / max(span, 1e-12)
    keep[int(depth.argmin())] = True
    return points[keep]


def jitter(points: np.ndarray, rng: np.random.Generator, std: float = 0.01) -> np.ndarray:
    """Add Gaussian noise to every coordinate, cut off at three standard deviations.

    Args:
        points: Cloud (N, 3).
        rng: Random generator.
        std: Standard deviation in the units of the cloud (default 0.01, 1 % of the unit sphere's radius).

    Returns:
        Noisy cloud (N, 3).

    Raises:
        ValueError: If `std` is outside its range.
    """
    _check_range("std", std, math.inf)
    return points + std * np.clip(rng.standard_normal(points.shape), -3.0, 3.0)


def add_outliers(points: np.ndarray, rng: np.random.Generator, fraction: float = 0.01) -> np.ndarray:
    """Replace random points by points uniform in the bounding box enlarged by 10 %.

    Args:
        points: Cloud (N, 3).
        rng: Random generator.
        fraction: Part of the points to replace, 0 to 1 (default 0.01); the number is rounded.

    Returns:
        Cloud (N, 3).

    Raises:
        ValueError: If `fraction` is outside its range.
    """
    _check_range("fraction", fraction)
    count = round(fraction * len(points))
    if count < 1:
        return points
    points = points.copy()
    rows = np.ascontiguousarray(points.T)
    low, high = rows.min(axis=1), rows.max(axis=1)
    margin = 0.05 * (high - low)
    points[rng.choice(len(points), count, replace=False)] = rng.uniform(low - margin, high + margin, (count, 3))
    return points


def resample(points: np.ndarray, rng: np.random.Generator, num_points: int) -> np.ndarray:
    """Take a fixed number of points at random, each at most once if there are enough.

    Args:
        points: Cloud (M, 3), M >= 1.
        rng: Random generator.
        num_points: Number of points N to return; if M < N the cloud is repeated.

    Returns:
        Cloud (N, 3).
    """
    order = rng.permutation(len(points))
    if len(points) < num_points:
        order = np.resize(order, num_points)
    return points[order[:num_points]]


@dataclass(frozen=True)
class ScanCorruption:
    """The corruptions of one simulated scan, applied in a fixed order; every default leaves the cloud as it is.

    Args:
        rotation: Largest rotation about the up axis in degrees, 0 to 180 (default 0).
        tilt: Largest tilt away from the up axis in degrees, 0 to 180 (default 0).
        partial_view: Part of the points hidden from a random camera that is removed, 0 to 1 (default 0).
        holes: Part of the remaining points lost in two ball-shaped holes, 0 to below 1 (default 0).
        density: Part of the points lost at the sparse end of the cloud, 0 to 1 (default 0).
        noise: Standard deviation of the Gaussian noise, in radii of the unit sphere (default 0).
        outliers: Part of the points replaced by uniform outliers, 0 to 1 (default 0).
        oversample: Surface points that should be sampled per returned point, >= 1 (default 1).
        normalize: Whether the result is centred and scaled to the unit sphere again (default True).

    Raises:
        ValueError: If a value is outside its range.
    """

    rotation: float = 0.0
    tilt: float = 0.0
    partial_view: float = 0.0
    holes: float = 0.0
    density: float = 0.0
    noise: float = 0.0
    outliers: float = 0.0
    oversample: int = 1
    normalize: bool = True

    def __post_init__(self) -> None:
        ranges = {"rotation": 180.0, "tilt": 180.0, "noise": math.inf}
        for name in ("rotation", "tilt", "partial_view", "holes", "density", "noise", "outliers"):
            below = name == "holes"
            _check_range(f"ScanCorruption: {name}", getattr(self, name), ranges.get(name, 1.0), below)
        if (
            isinstance(self.oversample, bool)
            or not isinstance(self.oversample, (int, np.integer))
            or self.oversample < 1
        ):
            raise ValueError(
                f"ScanCorruption: oversample must be an integer of at least 1, got {self.oversample!r}. "
                "Use 4 with a partial view."
            )

    def apply(self, points: np.ndarray, rng: np.random.Generator, num_points: int) -> np.ndarray:
        """Corrupt one cloud.

        Args:
            points: Cloud (M, 3) in the unit sphere, y up, best with M = `oversample` x `num_points`.
            rng: Random generator.
            num_points: Number of points N to return; if fewer than N survive, they are repeated.

        Returns:
            Cloud (N, 3), float32.

        Raises:
            ValueError: If `points` is not (M, 3) with M >= 1, or `num_points` is below 1.
        """
        points = np.asarray(points)
        if points.ndim != 2 or points.shape[1] != 3 or len(points) < 1:
            raise ValueError(f"points must have shape (M, 3) with M >= 1, got {points.shape}. Pass one cloud.")
        if num_points < 1:
            raise ValueError(f"num_points must be at least 1, got {num_points}. Ask for one point or more.")
        # float64 throughout: the casts would cost more than they save at these sizes.
        points = points.astype(np.float64)
        # The object turns before it is seen: the view is then random with respect to the object in any case.
        if self.rotation > 0.0:
            points = rotate_about_up(points, rng, self.rotation)
        if self.tilt > 0.0:
            points = tilt(points, rng, self.tilt)
        if self.partial_view > 0.0:
            points = remove_hidden_points(points, rng, self.partial_view)
        if self.holes > 0.0:
            points = cut_holes(points, rng, self.holes)
        if self.density > 0.0:
            points = thin_density(points, rng, self.density)
        points = resample(points, rng, num_points)
        # Noise comes after the resampling, so that repeated points do not coincide.
        if self.noise > 0.0:
            points = jitter(points, rng, self.noise)
        if self.outliers > 0.0:
            points = add_outliers(points, rng, self.outliers)
        return normalize_unit_sphere(points) if self.normalize else points.astype(np.float32)


CORRUPTION_PRESETS: dict[str, ScanCorruption] = {
    "clean": ScanCorruption(),
    "scan": ScanCorruption(rotation=180.0, partial_view=1.0, density=0.5, noise=0.01, outliers=0.01, oversample=4),
    "hard_scan": ScanCorruption(
        rotation=180.0, tilt=15.0, partial_view=1.0, holes=0.2, density=0.9, noise=0.025, outliers=0.04, oversample=4
    ),
}


def get_corruption(corruption: str | ScanCorruption) -> ScanCorruption:
    """Look a preset up by its name.

    Args:
        corruption: Name in `CORRUPTION_PRESETS` (`"clean"`, `"scan"`, `"hard_scan"`), or a corruption, returned as is.

    Returns:
        The corruption.

    Raises:
        ValueError: If no preset has this name.
    """
    if isinstance(corruption, ScanCorruption):
        return corruption
    if not isinstance(corruption, str) or corruption not in CORRUPTION_PRESETS:
        close = difflib.get_close_matches(str(corruption), CORRUPTION_PRESETS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"Unknown corruption {corruption!r}.{hint} Known presets: {', '.join(CORRUPTION_PRESETS)}. "
            "Pass one of these or a ScanCorruption."
        )
    return CORRUPTION_PRESETS[corruption]
