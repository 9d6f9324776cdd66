"""Walls, floor and ceiling of procedural rooms, with doors, windows, curtains and boards."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

_DOOR_HEIGHT = 2.05
_GLASS_RETURNS = 0.25


@dataclass
class Wall:
    """A straight wall.

    Attributes:
        start: Where it starts, (2,).
        along: Unit direction, (2,).
        inward: Unit normal into the room, (2,).
        length: Its length.
        taken: Stretches of it that are hidden or must stay free: from, to, and the height from which they do.
    """

    start: np.ndarray
    along: np.ndarray
    inward: np.ndarray
    length: float
    taken: list[tuple[float, float, float]] = field(default_factory=list)

    def is_free(self, low: float, high: float, height: float) -> bool:
        """Return whether something of a height fits between two places along the wall."""
        return (
            low > 0
            and high < self.length
            and not any(low < end and high > begin and height > bottom for begin, end, bottom in self.taken)
        )


class Shell:
    """A room of four walls, or six where a corner is cut out, and what is in its walls.

    Args:
        size: Width, depth and height.
        rng: Random generator.
        has_corner: Cut a corner out.
    """

    def __init__(self, size: tuple[float, float, float], rng: np.random.Generator, has_corner: bool):
        self.rng = rng
        self.width, self.depth, self.height = size
        corners = [(0.0, 0.0), (self.width, 0.0), (self.width, self.depth), (0.0, self.depth)]
        self.cut: tuple[float, float] | None = None
        if has_corner:
            self.cut = (self.width * rng.uniform(0.55, 0.75), self.depth * rng.uniform(0.55, 0.75))
            corners[2:3] = [(self.width, self.cut[1]), self.cut, (self.cut[0], self.depth)]
        places = np.array(corners)
        self.walls = []
        for start, end in zip(places, np.roll(places, -1, axis=0), strict=True):
            length = float(np.linalg.norm(end - start))
            along = (end - start) / length
            self.walls.append(Wall(start, along, np.array([-along[1], along[0]]), length))

    def contains(self, points: np.ndarray, margin: float = 0.0) -> np.ndarray:
        """Return which points (N, 2) are in the room, at least `margin` from its walls."""
        x, y = points[:, 0], points[:, 1]
        inside = (x > margin) & (y > margin) & (x < self.width - margin) & (y < self.depth - margin)
        if self.cut is not None:
            inside &= (x < self.cut[0] - margin) | (y < self.cut[1] - margin)
        return inside

    def surfaces(self, density: float, classes: set[str]) -> list[tuple[np.ndarray, np.ndarray, str]]:
        """Sample the shell.

        Args:
            density: Points for each square metre.
            classes: Classes of what may be in the walls: `"door"`, `"window"`, `"curtain"`, `"board"`.

        Returns:
            Points (N, 3), colours (N, 3) from 0 to 1 and the class of each surface.
        """
        parts = [self._plane(density, 0.0, "floor"), self._plane(density, self.height, "ceiling")]
        base = self._wall_color()
        openings = self._openings(classes)
        for index, wall in enumerate(self.walls):
            color = self._wall_color() if self.rng.random() < 0.2 else base
            parts += self._wall(wall, color, density, [opening for at, opening in openings if at == index])
        return parts

    def _wall_color(self) -> np.ndarray:
        return self.rng.uniform(0.6, 0.95) + self.rng.uniform(-0.12, 0.05, 3)

    def _plane(self, density: float, height: float, label: str) -> tuple[np.ndarray, np.ndarray, str]:
        rng = self.rng
        points = rng.random((int(self.width * self.depth * density), 3)) * [self.width, self.depth, 0.0]
        points = points[self.contains(points[:, :2])] + [0.0, 0.0, height]
        if label == "ceiling":
            color = np.full((len(points), 3), rng.uniform(0.75, 0.98)) + rng.uniform(-0.04, 0.02, 3)
            if rng.random() < 0.5:  # lights in a grid
                lit = (np.sin(points[:, 0] * 2.6) > 0.85) & (np.sin(points[:, 1] * 2.6) > 0.5)
                color[lit] = 1.0
            return points, color, label
        color = rng.uniform((0.2, 0.15, 0.1), (0.75, 0.65, 0.6)) * np.ones((len(points), 1))
        step, kind = rng.uniform(0.12, 0.6), rng.random()
        if kind < 0.7:  # planks or tiles
            cells = np.floor(points[:, :2] / ([step, 1e3] if kind < 0.4 else [step, step])).astype(np.int64)
            shade = rng.uniform(-0.08, 0.08, 97)
            color = color + shade[(cells[:, 0] * 31 + cells[:, 1] * 17) % 97, None]
        return points, color, label

    def _openings(self, classes: set[str]) -> list[tuple[int, dict]]:
        """Choose where doors, windows, curtains and boards are."""
        rng, chosen = self.rng, []
        wanted = ["door"] * int(rng.integers(1, 3)) + ["window"] * int(rng.integers(0, 4))
        wanted += ["board"] * int(rng.integers(1, 3)) * ("board" in classes)
        for kind in wanted:
            for _ in range(8):
                index = int(rng.integers(len(self.walls)))
                wall = self.walls[index]
                width = {
                    "door": rng.uniform(0.75, 1.0),
                    "window": rng.uniform(0.8, 2.2),
                    "board": rng.uniform(1.2, 2.4),
                }[kind]
                if wall.length < width + 0.4:
                    continue
                start = rng.uniform(0.15, wall.length - width - 0.15)
                low, high = {"door": (0.0, _DOOR_HEIGHT), "board": (0.9, 2.0)}.get(kind, (0.0, 0.0))
                if kind == "window":
                    low = rng.uniform(0.0, 0.2) if rng.random() < 0.2 else rng.uniform(0.75, 1.1)
                    high = min(self.height - 0.25, low + rng.uniform(1.0, 1.5))
                if any(start < end + 0.1 and start + width > begin - 0.1 for begin, end, _ in wall.taken):
                    continue
                wall.taken.append((start, start + width, 0.0 if kind == "door" else low))
                has_curtain = kind == "window" and "curtain" in classes and rng.random() < 0.75
                chosen.append(
                    (index, {"kind": kind, "x": (start, start + width), "z": (low, high), "curtain": has_curtain})
                )
                break
        return chosen

    def _wall(
        self, wall: Wall, color: np.ndarray, density: float, openings: list[dict]
    ) -> list[tuple[np.ndarray, np.ndarray, str]]:
        rng = self.rng
        number = int(wall.length * self.height * density)
        x, z = rng.random(number) * wall.length, rng.random(number) * self.height
        depth = np.zeros(number)  # into the room
        colors = color + np.zeros((number, 1))
        skirting = z < 0.08
        colors[skirting] = color * 0.8
        label = np.full(number, "wall", dtype="<U7")
        keep, extra = np.ones(number, dtype=bool), []
        for opening in openings:
            (left, right), (low, high), kind = opening["x"], opening["z"], opening["kind"]
            inside = (x > left) & (x < right) & (z > low) & (z < high)
            border = np.minimum.reduce([x - left, right - x, high - z, np.where(low > 0, z - low, 1.0)])
            label[inside] = kind
            if kind == "door":
                depth[inside] = np.where(border < 0.06, 0.03, -rng.uniform(-0.01, 0.08))[inside]
                colors[inside] = rng.uniform((0.3, 0.2, 0.1), (0.95, 0.9, 0.85))
                handle = inside & (abs(z - 1.05) < 0.04) & (x > right - 0.2) & (x < right - 0.08)
                depth[handle] += 0.06
            elif kind == "window":
                bars = border < 0.07
                middle = abs(x - (left + right) / 2) < 0.035
                frame = bars | middle
                depth[inside] = np.where(frame, -0.06, -0.1)[inside]
                colors[inside] = np.where(frame[:, None], rng.uniform(0.7, 1.0), rng.uniform(0.3, 0.9, 3))[inside]
                keep &= ~inside | frame | (rng.random(number) < _GLASS_RETURNS)
            else:
                depth[inside] = 0.03
                tone = 0.97 if rng.random() < 0.6 else 0.15
                colors[inside] = np.where(border[:, None] < 0.04, 0.5, tone + rng.uniform(-0.03, 0.03, 3))[inside]
            if opening["curtain"]:
                extra.append(self._curtain(wall, opening, density))
        parts = [(self._place(wall, x, depth, z), colors, label)]
        return [
            (points[keep & (label == name)], colors[keep & (label == name)], str(name))
            for points, colors, label in parts
            for name in np.unique(label)
        ] + extra

    def _curtain(self, wall: Wall, opening: dict, density: float) -> tuple[np.ndarray, np.ndarray, str]:
        """Hang a curtain on either side of a window, or drawn across it."""
        rng = self.rng
        (left, right), (_, high) = opening["x"], opening["z"]
        low = rng.uniform(0.02, 0.15) if rng.random() < 0.8 else opening["z"][0] - 0.1
        side = rng.uniform(0.25, 0.45) if rng.random() < 0.75 else (right - left) / 2 + 0.1
        top = min(high + 0.15, self.height - 0.02)
        number = int(2 * side * (top - low) * density * 1.3)
        x, z = rng.random(number) * side, low + rng.random(number) * (top - low)
        x = np.where(rng.random(number) < 0.5, left - 0.1 + x, right + 0.1 - x)
        x = x.clip(0.02, wall.length - 0.02)
        depth = 0.1 + 0.035 * np.sin(x * rng.uniform(35, 70))
        color = rng.uniform((0.15, 0.15, 0.15), (0.95, 0.9, 0.9)) * (1 + 2.5 * (depth - 0.1)[:, None])
        wall.taken.append((left - 0.1, right + 0.1, low))
        return self._place(wall, x, depth, z), color, "curtain"

    @staticmethod
    def _place(wall: Wall, x: np.ndarray, depth: np.ndarray, z: np.ndarray) -> np.ndarray:
        plane = wall.start + x[:, None] * wall.along + depth[:, None] * wall.inward
        return np.concatenate([plane, z[:, None]], axis=1)
