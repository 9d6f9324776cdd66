"""Procedural rooms as scenes with labels."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from ..scenes.dataset import SceneDataset
from ..scenes.scene import Scene
from .furnishing import FINETUNING_ROOMS, PRETRAINING_ROOMS, Furnisher, RoomType
from .scanner import scan
from .shell import Shell

_ALL_ROOMS = {**PRETRAINING_ROOMS, **FINETUNING_ROOMS}
_ORDER = ("ceiling", "floor", "wall", "window", "door", "board", "table", "chair", "shelf", "cabinet", "monitor")
_ORDER += ("plant", "bed", "sofa", "lamp", "curtain", "counter", "clutter")
_DENSITY = 900.0
NUM_POINTS = 30_000
SPLITS = ("train", "validation", "test")
# Rooms of the default task.
TASK_ROOMS: Mapping[str, int] = {"train": 36, "validation": 9, "test": 18}


def _classes(rooms: Mapping[str, RoomType]) -> tuple[str, ...]:
    labels = set().union(*(room.labels for room in rooms.values()))
    return tuple(name for name in _ORDER if name in labels)


PRETRAINING_CLASSES: tuple[str, ...] = _classes(PRETRAINING_ROOMS)
"""Classes of the rooms for pre-training."""

FINETUNING_CLASSES: tuple[str, ...] = _classes(FINETUNING_ROOMS)
"""Classes of the rooms of the default fine-tuning task; bed, sofa, lamp, curtain and counter are in no other rooms."""


def make_room(
    room_type: str, rng: np.random.Generator | int | None = None, num_points: int = NUM_POINTS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Build a random room of a type, and scan it from one to three places.

    Args:
        room_type: A name of `PRETRAINING_ROOMS` or `FINETUNING_ROOMS`.
        rng: Random generator, or a seed for one (default: a fresh, unseeded generator).
        num_points: About how many points come out.

    Returns:
        Points (N, 3) in metres, z up, float32; colours (N, 3), uint8; and the name of the class of each, (N,).

    Raises:
        ValueError: If the type is unknown.
    """
    if room_type not in _ALL_ROOMS:
        raise ValueError(f"Unknown room type {room_type!r}. Known types: {', '.join(_ALL_ROOMS)}.")
    if num_points < 2:
        raise ValueError(f"num_points must be at least 2, got {num_points}.")
    rng, room = np.random.default_rng(rng), _ALL_ROOMS[room_type]
    size = tuple(rng.uniform(*limits) for limits in (room.width, room.depth, room.height))
    shell = Shell(size, rng, has_corner=size[1] > 3.2 and rng.random() < 0.25)
    density = _DENSITY * max(1.0, num_points / NUM_POINTS)
    parts = shell.surfaces(density, room.labels)
    furnisher = Furnisher(shell, rng, density)
    parts += furnisher.furnish(room)
    points, colors = (np.concatenate([part[index] for part in parts]) for index in range(2))
    numbers = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
    places = _places(shell, furnisher, rng)
    points, colors, rows = scan(points, colors, places, num_points, rng)
    names = np.array([part[2] for part in parts])
    return points, colors, names[numbers[rows]]


def _places(shell: Shell, furnisher: Furnisher, rng: np.random.Generator) -> np.ndarray:
    """Choose where the scanner stands: on the floor, away from walls and furniture."""
    wanted, places = int(rng.integers(1, 4)), []
    for _ in range(60):
        place = rng.uniform((0.4, 0.4), (shell.width - 0.4, shell.depth - 0.4))
        free = not any((place > box[:2] - 0.15).all() and (place < box[2:] + 0.15).all() for box in furnisher.boxes)
        if shell.contains(place[None], 0.35)[0] and free:
            places.append([*place, rng.uniform(1.2, 1.9)])
        if len(places) == wanted:
            break
    # Furniture everywhere: the scanner hangs from the ceiling.
    return np.array(places or [[0.4 * shell.width, 0.4 * shell.depth, shell.height - 0.2]])


class ProceduralRooms(Sequence):
    """Scenes of procedural rooms, made when they are asked for.

    A room is a pure function of the seed, the split, its type and its number within the type. Types take turns.

    Args:
        room_types: Names of types.
        class_names: Names of the classes, by label; points of others are unlabelled.
        num_rooms: How many rooms there are.
        seed: Seed.
        split: `"train"`, `"validation"` or `"test"`; splits share no room.
        num_points: About how many points a room has.
        cache: Keep each room in memory after its first use.

    Raises:
        ValueError: If a type or the split is unknown, or there are no rooms.
    """

    def __init__(
        self,
        room_types: Sequence[str] = tuple(FINETUNING_ROOMS),
        class_names: Sequence[str] = FINETUNING_CLASSES,
        num_rooms: int = 30,
        seed: int = 0,
        split: str = "train",
        num_points: int = NUM_POINTS,
        cache: bool = True,
    ):
        unknown = [name for name in room_types if name not in _ALL_ROOMS]
        if unknown or not room_types:
            raise ValueError(f"Unknown room types {unknown}. Pass some of {', '.join(_ALL_ROOMS)}.")
        if split not in SPLITS:
            raise ValueError(f"Unknown split {split!r}. Pass one of {', '.join(SPLITS)}.")
        if num_rooms < 1:
            raise ValueError(f"num_rooms must be at least 1, got {num_rooms}.")
        self.room_types = list(room_types)
        self.class_names = list(class_names)
        self.num_rooms = num_rooms
        self.seed, self.split, self.num_points = seed, split, num_points
        self._rooms: dict[int, Scene] | None = {} if cache else None

    def __len__(self) -> int:
        return self.num_rooms

    def __getitem__(self, index: int) -> Scene:
        if not 0 <= index < self.num_rooms:
            raise IndexError(f"room {index} of {self.num_rooms}")
        if self._rooms is not None and index in self._rooms:
            return self._rooms[index]
        number, kind = divmod(index, len(self.room_types))
        room_type = self.room_types[kind]
        # crc32 and not hash(): the latter differs from process to process.
        key = [self.seed, zlib.crc32(self.split.encode()), zlib.crc32(room_type.encode()), number]
        points, colors, names = make_room(room_type, np.random.default_rng(key), self.num_points)
        labels = np.full(len(points), -100, dtype=np.int64)
        for label, name in enumerate(self.class_names):
            labels[names == name] = label
        scene = Scene(points, colors, labels=labels, name=f"{room_type} {number}")
        if self._rooms is not None:
            self._rooms[index] = scene
        return scene


def load_procedural_rooms(
    rooms: Mapping[str, int] = TASK_ROOMS, *, seed: int = 0, num_points: int = NUM_POINTS
) -> dict[str, SceneDataset]:
    """Make the default task: bedrooms, living rooms and kitchens, which the shipped encoder never saw.

    Args:
        rooms: Number of rooms of each split.
        seed: Seed of the rooms.
        num_points: About how many points a room has.

    Returns:
        The data sets by split.
    """
    return {
        split: SceneDataset(
            ProceduralRooms(num_rooms=number, seed=seed, split=split, num_points=num_points), FINETUNING_CLASSES
        )
        for split, number in rooms.items()
    }
