"""What stands in procedural rooms: shapes with a class, a size and a colour. Metres, z up, the front towards -y."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..procedural import furniture, household
from ..procedural.primitives import Surface

Build = Callable[[np.random.Generator], Surface]
# Red, green and blue from 0 to 1 between which a colour is drawn.
_WOOD = ((0.25, 0.15, 0.08), (0.85, 0.68, 0.45))
_FABRIC = ((0.1, 0.1, 0.1), (0.85, 0.8, 0.8))
_METAL = ((0.3, 0.3, 0.32), (0.8, 0.8, 0.85))
_WHITE = ((0.75, 0.73, 0.7), (0.97, 0.97, 0.97))
_DARK = ((0.02, 0.02, 0.02), (0.2, 0.2, 0.22))
_GREEN = ((0.08, 0.25, 0.05), (0.35, 0.6, 0.25))
_ANY = ((0.05, 0.05, 0.05), (0.95, 0.95, 0.95))


@dataclass(frozen=True)
class Item:
    """A kind of object.

    Attributes:
        label: Name of its class.
        build: Makes its surface, y up, the front towards +z.
        size: Smallest and largest length of its longest side; `None` for that of the surface.
        colors: Ranges that its colour is drawn from, one at random.
    """

    label: str
    build: Build
    size: tuple[float, float] | None = None
    colors: tuple = (_WOOD, _FABRIC)

    def make(self, rng: np.random.Generator, density: float) -> tuple[np.ndarray, np.ndarray]:
        """Make one object.

        Args:
            rng: Random generator.
            density: Points for each square metre of its surface.

        Returns:
            Points (N, 3), the middle of the footprint at x = y = 0 and the lowest z at 0; and colours (N, 3), 0 to 1.
        """
        surface = self.build(rng)
        scale = 1.0
        if self.size is not None:
            extent = np.ptp(surface.sample(200, rng), axis=0).max()
            scale = rng.uniform(*self.size) / extent
        number = int(np.clip(surface.area * scale**2 * density, 40, 12_000))
        x, y, z = (scale * surface.sample(number, rng)).T
        points = np.stack([x, -z, y], axis=1)
        low, high = points.min(axis=0), points.max(axis=0)
        points -= [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]]
        low_color, high_color = (np.array(end) for end in self.colors[int(rng.integers(len(self.colors)))])
        color = low_color + (high_color - low_color) * (0.7 * rng.random() + 0.3 * rng.random(3))
        second = np.clip(color + rng.uniform(-0.25, 0.25), 0.02, 0.98)
        upper = points[:, 2] > rng.uniform(0.3, 1.1) * points[:, 2].max()
        return points, np.where(upper[:, None], second, color)


def _desk(rng: np.random.Generator) -> Surface:
    """Make a desk: a plate on two side panels, with drawers on one side."""
    s = Surface()
    width, depth, height = rng.uniform(1.1, 1.8), rng.uniform(0.6, 0.8), rng.uniform(0.68, 0.76)
    s.box((0, height, 0), (width, 0.03, depth))
    for side in (-1, 1):
        s.box((side * (0.5 * width - 0.03), 0.5 * height, 0), (0.03, height, 0.9 * depth))
    if rng.random() < 0.6:
        s.box((0.5 * width - 0.25, 0.5 * height, 0), (0.4, 0.85 * height, 0.8 * depth))
    s.box((0, 0.7 * height, -0.4 * depth), (width - 0.1, 0.3, 0.02))
    return s


def _box_pile(rng: np.random.Generator) -> Surface:
    """Make one to three cardboard boxes on each other."""
    s, top = Surface(), 0.0
    for _ in range(int(rng.integers(1, 4))):
        size = rng.uniform(0.25, 0.55, 3)
        s.box((rng.uniform(-0.05, 0.05), top + 0.5 * size[1], rng.uniform(-0.05, 0.05)), size)
        top += size[1]
    return s


def _bin(rng: np.random.Generator) -> Surface:
    """Make a waste bin or a bucket."""
    s = Surface()
    radius, height = rng.uniform(0.12, 0.2), rng.uniform(0.25, 0.6)
    s.frustum((0, 0, 0), (0, height, 0), radius * rng.uniform(0.7, 1), radius)
    return s


def _bag(rng: np.random.Generator) -> Surface:
    s = Surface()
    size = rng.uniform(0.2, 0.5, 3)
    s.ellipsoid((0, 0.5 * size[1], 0), 0.5 * size)
    return s


def _counter(rng: np.random.Generator) -> Surface:
    """Make a kitchen counter: a body with fronts, a plinth, and a plate that stands over."""
    s = Surface()
    width, depth, height = rng.uniform(1.4, 3.0), rng.uniform(0.55, 0.65), rng.uniform(0.82, 0.92)
    s.box((0, 0.5 * height + 0.04, 0), (width, height - 0.12, depth))
    s.box((0, 0.05, -0.03), (width, 0.1, depth - 0.06))
    s.box((0, height, 0.01), (width + 0.02, 0.04, depth + 0.04))
    doors = max(2, round(width / 0.55))
    for index in range(doors):
        x = (index + 0.5) * width / doors - 0.5 * width
        s.box((x, 0.5 * height + 0.04, 0.5 * depth), (width / doors - 0.02, height - 0.2, 0.02))
        s.box((x, height - 0.12, 0.5 * depth + 0.03), (0.15, 0.015, 0.02))
    if rng.random() < 0.7:  # a tap
        s.tube([(0, height, -0.2), (0, height + 0.28, -0.2), (0, height + 0.28, -0.05)], 0.015)
    return s


def _wardrobe(rng: np.random.Generator) -> Surface:
    """Make a high closed cabinet with two to four doors."""
    s = Surface()
    width, depth, height = rng.uniform(0.9, 2.2), rng.uniform(0.5, 0.65), rng.uniform(1.8, 2.25)
    s.box((0, 0.5 * height, 0), (width, height, depth))
    doors = max(2, round(width / 0.55))
    for index in range(doors):
        x = (index + 0.5) * width / doors - 0.5 * width
        s.box((x, 0.5 * height, 0.5 * depth + 0.01), (width / doors - 0.015, height - 0.1, 0.02))
        s.box((x + 0.2, 0.5 * height, 0.5 * depth + 0.03), (0.02, 0.2, 0.02))
    return s


def _wall_cabinet(rng: np.random.Generator) -> Surface:
    s = Surface()
    width = rng.uniform(0.8, 2.4)
    s.box((0, 0.35, 0), (width, 0.7, 0.34))
    for index in range(max(2, round(width / 0.5))):
        x = (index + 0.5) * width / max(2, round(width / 0.5)) - 0.5 * width
        s.box((x, 0.35, 0.18), (0.46, 0.64, 0.02))
    return s


def _fridge(rng: np.random.Generator) -> Surface:
    s = Surface()
    height = rng.uniform(1.5, 1.95)
    s.box((0, 0.5 * height, 0), (0.6, height, 0.62))
    s.box((0, 0.65 * height, 0.32), (0.58, 0.64 * height, 0.03))
    s.box((0, 0.15 * height, 0.32), (0.58, 0.28 * height, 0.03))
    s.box((-0.25, 0.55 * height, 0.36), (0.02, 0.4, 0.03))
    return s


def _rack(rng: np.random.Generator) -> Surface:
    """Make an open rack of four posts with shelves, boxes on some of them."""
    s = Surface()
    width, depth, height = rng.uniform(0.9, 1.6), rng.uniform(0.35, 0.5), rng.uniform(1.6, 2.2)
    for x in (-0.5, 0.5):
        for z in (-0.5, 0.5):
            s.box((x * width, 0.5 * height, z * depth), (0.04, height, 0.04))
    for level in np.linspace(0.1, height - 0.05, int(rng.integers(3, 6))):
        s.box((0, level, 0), (width, 0.025, depth))
        if rng.random() < 0.6 and level < height - 0.3:
            size = rng.uniform((0.2, 0.15, 0.2), (0.6 * width, 0.3, depth))
            s.box((rng.uniform(-0.2, 0.2) * width, level + 0.5 * size[1], 0), size)
    return s


def _floor_lamp(rng: np.random.Generator) -> Surface:
    """Make a floor lamp: foot, stem, and a shade like a cone or a ball."""
    s = Surface()
    height = rng.uniform(1.2, 1.75)
    s.frustum((0, 0, 0), (0, 0.03, 0), rng.uniform(0.12, 0.18))
    s.frustum((0, 0.03, 0), (0, height, 0), 0.014)
    if rng.random() < 0.7:
        low = rng.uniform(0.15, 0.24)
        s.frustum((0, height - 0.3, 0), (0, height, 0), low, low * rng.uniform(0.5, 1), caps=False)
    else:
        s.ellipsoid((0, height, 0), (0.16, 0.16, 0.16))
    return s


ITEMS: dict[str, Item] = {
    "desk": Item("table", _desk, None, (_WOOD, _WHITE)),
    "table": Item("table", furniture.table, None, (_WOOD, _WHITE, _DARK)),
    "coffee_table": Item("table", furniture.side_table, (0.5, 0.9), (_WOOD, _WHITE, _DARK)),
    "nightstand": Item("table", furniture.side_table, None, (_WOOD, _WHITE)),
    "chair": Item("chair", furniture.chair, None, (_WOOD, _FABRIC, _DARK)),
    "stool": Item("chair", furniture.stool, None, (_WOOD, _METAL)),
    "bench": Item("chair", furniture.bench, None, (_WOOD, _METAL)),
    "sofa": Item("sofa", furniture.sofa, None, (_FABRIC,)),
    "armchair": Item("sofa", furniture.armchair, None, (_FABRIC,)),
    "bed": Item("bed", furniture.bed, None, (_FABRIC, _WHITE)),
    "bookshelf": Item("shelf", furniture.bookshelf, (1.2, 2.1), (_WOOD, _WHITE)),
    "rack": Item("shelf", _rack, None, (_METAL, _WOOD)),
    "cabinet": Item("cabinet", furniture.cabinet, None, (_WOOD, _WHITE, _METAL)),
    "wardrobe": Item("cabinet", _wardrobe, None, (_WOOD, _WHITE)),
    "wall_cabinet": Item("cabinet", _wall_cabinet, None, (_WOOD, _WHITE)),
    "fridge": Item("cabinet", _fridge, None, (_WHITE, _METAL)),
    "counter": Item("counter", _counter, None, (_WOOD, _WHITE, _DARK)),
    "floor_lamp": Item("lamp", _floor_lamp, None, (_METAL, _WHITE)),
    "table_lamp": Item("lamp", household.lamp, (0.35, 0.6), (_METAL, _WHITE, _FABRIC)),
    "plant": Item("plant", household.potted_plant, (0.6, 1.5), (_GREEN,)),
    "monitor": Item("monitor", household.monitor, (0.45, 0.65), (_DARK,)),
    "television": Item("monitor", household.monitor, (0.9, 1.4), (_DARK,)),
    "laptop": Item("clutter", household.laptop, (0.3, 0.4), (_DARK, _METAL)),
    "keyboard": Item("clutter", household.keyboard, (0.4, 0.5), (_DARK, _WHITE)),
    "bottle": Item("clutter", household.bottle, (0.2, 0.35), (_ANY,)),
    "mug": Item("clutter", household.mug, (0.1, 0.14), (_ANY,)),
    "bowl": Item("clutter", household.bowl, (0.15, 0.3), (_ANY,)),
    "pot": Item("clutter", household.cooking_pot, (0.25, 0.45), (_METAL,)),
    "kettle": Item("clutter", household.teapot, (0.2, 0.3), (_METAL, _ANY)),
    "vase": Item("clutter", household.vase, (0.2, 0.4), (_ANY,)),
    "guitar": Item("clutter", household.guitar, (0.9, 1.1), (_WOOD,)),
    "boxes": Item("clutter", _box_pile, None, (((0.5, 0.38, 0.22), (0.75, 0.6, 0.42)),)),
    "bin": Item("clutter", _bin, None, (_ANY,)),
    "bag": Item("clutter", _bag, None, (_ANY,)),
}
"""Kinds of objects by name."""
