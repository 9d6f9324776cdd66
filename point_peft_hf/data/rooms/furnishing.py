"""Room types, and where their furniture stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .items import ITEMS
from .shell import Shell, Wall

# Points, colours and class of one object or surface.
Part = tuple[np.ndarray, np.ndarray, str]
_TRIES = 12
# Free space in front of furniture along a wall.
_GAP = 0.02


@dataclass(frozen=True)
class RoomType:
    """A kind of room.

    Attributes:
        width: Range of the longer side.
        depth: Range of the shorter side.
        height: Range of the height.
        along_walls: Items along the walls, each with how many there may be.
        inside: Items away from the walls.
        seats: What stands around the tables; `None` for nothing.
        on_tables: What may stand on tables, shelves and counters.
        mounted: Items that hang on walls, from 1.2 m up.
        rows: Whether tables stand in rows, each with a seat on one side.
        has_boards: Whether boards hang on the walls.
        has_curtains: Whether curtains hang at the windows.
    """

    width: tuple[float, float]
    depth: tuple[float, float]
    along_walls: tuple[tuple[str, int, int], ...]
    inside: tuple[tuple[str, int, int], ...] = ()
    height: tuple[float, float] = (2.4, 3.1)
    seats: str | None = None
    on_tables: tuple[str, ...] = ()
    mounted: tuple[tuple[str, int, int], ...] = ()
    rows: bool = False
    has_boards: bool = False
    has_curtains: bool = False

    @property
    def labels(self) -> set[str]:
        """Classes that can occur in such a room."""
        kinds = [name for group in (self.along_walls, self.inside, self.mounted) for name, _, _ in group]
        kinds += [*self.on_tables, *([self.seats] if self.seats else [])]
        in_walls = {"board"} if self.has_boards else set()
        in_walls |= {"curtain"} if self.has_curtains else set()
        return {"ceiling", "floor", "wall", "window", "door", *in_walls, *(ITEMS[kind].label for kind in kinds)}


_OFFICE_THINGS = ("monitor", "monitor", "keyboard", "laptop", "mug", "bottle", "plant", "boxes")
_HOME_THINGS = ("vase", "table_lamp", "bowl", "mug", "bottle", "laptop", "kettle")
PRETRAINING_ROOMS: dict[str, RoomType] = {
    "office": RoomType(
        (3.6, 7.0), (3.0, 5.0),
        (("desk", 1, 3), ("bookshelf", 0, 2), ("cabinet", 0, 2), ("plant", 0, 2), ("bin", 0, 2), ("boxes", 0, 2)),
        (("desk", 0, 2),), seats="chair", on_tables=_OFFICE_THINGS, has_boards=True,
    ),
    "meeting_room": RoomType(
        (4.0, 7.0), (3.4, 5.0),
        (("cabinet", 0, 2), ("plant", 0, 2), ("television", 0, 1), ("bench", 0, 1), ("bin", 0, 1)),
        (("table", 1, 2),), seats="chair", on_tables=("laptop", "mug", "bottle", "bag"), has_boards=True,
    ),
    "classroom": RoomType(
        (6.0, 8.5), (5.0, 6.5),
        (("desk", 1, 1), ("cabinet", 1, 3), ("bookshelf", 0, 2), ("bin", 0, 2), ("plant", 0, 1), ("boxes", 0, 1)),
        (("table", 5, 9),), seats="chair", on_tables=("bag", "laptop", "bottle", "boxes"), rows=True, has_boards=True,
        height=(2.7, 3.4),
    ),
    "corridor": RoomType(
        (6.0, 10.0), (1.6, 2.6),
        (("bench", 0, 3), ("cabinet", 0, 2), ("plant", 0, 3), ("bin", 0, 2), ("rack", 0, 1), ("boxes", 0, 2)),
        has_boards=True,
    ),
    "store": RoomType(
        (3.0, 6.0), (2.6, 4.5),
        (("rack", 2, 6), ("cabinet", 0, 3), ("boxes", 1, 5), ("bin", 0, 2)),
        (("boxes", 0, 4), ("rack", 0, 2), ("table", 0, 1)), on_tables=("boxes", "bottle", "pot", "bag"),
    ),
}  # fmt: skip
"""Room types for pre-training."""

FINETUNING_ROOMS: dict[str, RoomType] = {
    "bedroom": RoomType(
        (3.2, 5.2), (2.8, 4.2),
        (("bed", 1, 2), ("nightstand", 1, 2), ("wardrobe", 1, 2), ("floor_lamp", 0, 1), ("desk", 0, 1),
         ("armchair", 0, 1), ("bookshelf", 0, 1), ("bag", 0, 2), ("guitar", 0, 1)),
        seats="chair", on_tables=_HOME_THINGS, has_curtains=True,
    ),
    "living_room": RoomType(
        (4.0, 6.5), (3.4, 5.0),
        (("sofa", 1, 2), ("armchair", 0, 2), ("bookshelf", 0, 2), ("cabinet", 0, 2), ("floor_lamp", 1, 2),
         ("bag", 0, 1), ("guitar", 0, 1)),
        (("coffee_table", 1, 2), ("table", 0, 1), ("sofa", 0, 1)),
        seats="chair", on_tables=_HOME_THINGS, has_curtains=True,
    ),
    "kitchen": RoomType(
        (3.0, 5.0), (2.6, 4.0),
        (("counter", 1, 3), ("fridge", 1, 1), ("wardrobe", 0, 1), ("bin", 1, 2), ("boxes", 0, 1)),
        (("table", 1, 1), ("counter", 0, 1)),
        seats="stool", on_tables=("pot", "kettle", "mug", "bowl", "bottle", "vase", "table_lamp"),
        mounted=(("wall_cabinet", 1, 3),), has_curtains=True,
    ),
}  # fmt: skip
"""Room types of the default fine-tuning task, none of them for pre-training."""

_CARRIERS = ("desk", "table", "coffee_table", "nightstand", "cabinet", "counter")
_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1))


@dataclass(frozen=True)
class _Object:
    """An object that has no place yet: the middle of its footprint at 0, its lowest point at 0."""

    name: str
    points: np.ndarray
    colors: np.ndarray
    half: np.ndarray  # of the footprint
    height: float

    def reach(self, angle: float) -> np.ndarray:
        """Half of the sides of the footprint's bounding box, turned by an angle."""
        cos, sin = abs(np.cos(angle)), abs(np.sin(angle))
        return np.array([[cos, sin], [sin, cos]]) @ self.half


def _facing(direction: Sequence[float]) -> float:
    """Give the angle that turns the front of an object, -y, into a direction."""
    return float(np.arctan2(direction[1], direction[0]) + np.pi / 2)


class Furnisher:
    """Places objects in a room so that they do not stand in each other.

    Args:
        shell: The walls.
        rng: Random generator.
        density: Points for each square metre of surface.
    """

    def __init__(self, shell: Shell, rng: np.random.Generator, density: float):
        self.shell, self.rng, self.density = shell, rng, density
        self.boxes: list[np.ndarray] = []  # footprints: low x, low y, high x, high y
        self.parts: list[Part] = []
        self.carriers: list[tuple[np.ndarray, float]] = []  # footprints and heights of tops

    def furnish(self, room: RoomType) -> list[Part]:
        """Fill a room of a type.

        Args:
            room: The type.

        Returns:
            Points (N, 3), colours (N, 3) and the class of each object.
        """
        for name, low, high in room.along_walls:
            for _ in range(int(self.rng.integers(low, high + 1))):
                self._along_wall(name)
        for name, low, high in room.inside:
            self._inside(name, int(self.rng.integers(low, high + 1)), room)
        for name, low, high in room.mounted:
            for _ in range(int(self.rng.integers(low, high + 1))):
                self._along_wall(name, base=self.rng.uniform(1.35, 1.5))
        if room.seats is not None and not room.rows:
            self._loose_seats(room.seats)
        self._fill_tops(room.on_tables)
        return self.parts

    def _make(self, name: str) -> _Object:
        points, colors = ITEMS[name].make(self.rng, self.density)
        return _Object(name, points, colors, points[:, :2].max(axis=0), float(points[:, 2].max()))

    def _is_free(self, box: np.ndarray, gap: float) -> bool:
        corners = np.array([[box[0], box[1]], [box[2], box[1]], [box[0], box[3]], [box[2], box[3]]])
        if not self.shell.contains(corners, 0.01).all():
            return False
        return not any(
            box[0] < other[2] + gap and box[2] > other[0] - gap and box[1] < other[3] + gap and box[3] > other[1] - gap
            for other in self.boxes
        )

    def _put(self, thing: _Object, place: np.ndarray, angle: float, *, base: float = 0.0, gap: float = 0.03) -> bool:
        """Put an object at a place, if it is free; only what stands on the floor takes room there."""
        reach = thing.reach(angle)
        box = np.concatenate([place - reach, place + reach])
        if base == 0.0:
            if not self._is_free(box, gap):
                return False
            self.boxes.append(box)
        cos, sin = np.cos(angle), np.sin(angle)
        points = np.concatenate(
            [thing.points[:, :2] @ np.array([[cos, sin], [-sin, cos]]), thing.points[:, 2:]], axis=1
        )
        self.parts.append((points + [*place, base], thing.colors, ITEMS[thing.name].label))
        if thing.name in _CARRIERS and base + thing.height < 1.3:
            self.carriers.append((box, base + thing.height))
        return True

    def _along_wall(self, name: str, base: float = 0.0) -> None:
        """Put an object with its back to a wall, where one has room."""
        rng, thing = self.rng, self._make(name)
        for _ in range(_TRIES):
            wall: Wall = self.shell.walls[int(rng.integers(len(self.shell.walls)))]
            angle = _facing(wall.inward) + rng.normal(0, 0.02)
            reach = thing.reach(angle)
            half, depth = float(np.abs(wall.along) @ reach), float(np.abs(wall.inward) @ reach)
            if wall.length < 2 * half + 0.2:
                continue
            at = rng.uniform(half + 0.05, wall.length - half - 0.05)
            place = wall.start + at * wall.along + (depth + _GAP) * wall.inward
            if wall.is_free(at - half, at + half, base + thing.height) and self._put(thing, place, angle, base=base):
                if base > 0.0:
                    wall.taken.append((at - half, at + half, base))
                return

    def _inside(self, name: str, number: int, room: RoomType) -> None:
        """Put objects away from the walls: in rows of one kind, or anywhere; seats come to tables."""
        rng, thing = self.rng, self._make(name)
        columns = max(1, int((self.shell.width - 1.2) // 2.0))
        for index in range(number):
            if index and not room.rows:
                thing = self._make(name)
            for _ in range(_TRIES):
                if room.rows:
                    angle = rng.normal(0, 0.04)
                    place = np.array([1.3 + 2.0 * (index % columns), 1.6 + 1.6 * (index // columns)])
                    place += rng.normal(0, 0.05, 2)
                else:
                    angle = rng.integers(4) * np.pi / 2 + rng.normal(0, 0.06)
                    place = rng.uniform((0.9, 0.7), (self.shell.width - 0.9, max(0.8, self.shell.depth - 0.7)))
                if self._put(thing, place, angle, gap=0.15):
                    if room.seats is not None and ITEMS[name].label == "table" and name != "coffee_table":
                        self._seats(room.seats, self.boxes[-1], only_one=room.rows)
                    break

    def _seats(self, name: str, box: np.ndarray, only_one: bool) -> None:
        """Put seats of one kind around a table, looking at it."""
        rng, seat = self.rng, self._make(name)
        half = (box[2:] - box[:2]) / 2
        for side in _SIDES[2:3] if only_one else _SIDES:
            length = half[1] if side[0] else half[0]
            number = 1 if only_one or length < 0.5 else max(1, int(2 * length // 0.65))
            for index in range(number):
                if rng.random() < 0.2:
                    continue
                offset = (index + 0.5) * 2 * length / number - length + rng.normal(0, 0.04)
                self._put_beside(seat, box, side, offset, gap=-0.02)

    def _loose_seats(self, name: str) -> None:
        """Put seats in front of large tables that have none."""
        for box, top in list(self.carriers):
            if top > 0.85 or max(box[2:] - box[:2]) < 0.9 or self.rng.random() < 0.3:
                continue
            middle = (box[:2] + box[2:]) / 2
            if any(
                np.abs((other[:2] + other[2:]) / 2 - middle).max() < 1.0 for other in self.boxes if other is not box
            ):
                continue
            seat = self._make(name)
            for side in _SIDES:
                if self._put_beside(seat, box, side, self.rng.normal(0, 0.1), gap=0.0):
                    break

    def _put_beside(self, seat: _Object, box: np.ndarray, side: tuple[int, int], offset: float, gap: float) -> bool:
        angle = _facing((-side[0], -side[1])) + self.rng.normal(0, 0.2)
        away = (box[2:] - box[:2]) / 2 + seat.reach(angle) + self.rng.uniform(-0.02, 0.35)
        place = (box[:2] + box[2:]) / 2 + np.array(side) * away
        return self._put(seat, place + offset * np.array(side[::-1]), angle, gap=gap)

    def _fill_tops(self, names: Sequence[str]) -> None:
        """Put small things on tables, cabinets and counters."""
        rng = self.rng
        if not names:
            return
        for box, top in list(self.carriers):
            for _ in range(int(rng.integers(0, 4))):
                thing, angle = self._make(names[int(rng.integers(len(names)))]), rng.uniform(0, 2 * np.pi)
                reach = thing.reach(angle)
                if (2 * reach < box[2:] - box[:2]).all() and thing.height < 0.75:
                    self._put(thing, rng.uniform(box[:2] + reach, box[2:] - reach), angle, base=top)
