import zlib

import numpy as np
import pytest

from point_peft_hf.data.rooms import (
    FINETUNING_CLASSES,
    FINETUNING_ROOMS,
    PRETRAINING_CLASSES,
    PRETRAINING_ROOMS,
    ProceduralRooms,
    load_procedural_rooms,
    make_room,
)
from point_peft_hf.data.rooms.scanner import scan

ROOMS = {**PRETRAINING_ROOMS, **FINETUNING_ROOMS}


@pytest.mark.parametrize("room_type", ROOMS)
def test_rooms_are_plausible(room_type):
    points, colors, names = make_room(room_type, 1, 6000)
    room = ROOMS[room_type]
    assert 5000 < len(points) < 7000
    assert points.dtype == np.float32
    assert colors.dtype == np.uint8
    assert set(names) <= room.labels
    assert {"floor", "wall", "ceiling"} <= set(names)
    low, high = points.min(axis=0), points.max(axis=0)
    assert (low > -0.6).all()
    assert high[0] < room.width[1] + 0.6
    assert high[2] < room.height[1] + 0.3
    assert abs(np.median(points[names == "floor", 2])) < 0.03
    assert abs(np.median(points[names == "ceiling", 2]) - np.percentile(points[:, 2], 99)) < 0.1
    inside = ~np.isin(names, ["wall", "floor", "ceiling", "window", "door"])
    assert inside.mean() > 0.02


def test_the_same_seed_gives_the_same_room():
    rooms = [ProceduralRooms(num_rooms=4, seed=seed, split=split, num_points=2000) for seed, split in
             ((0, "train"), (0, "train"), (1, "train"), (0, "test"))]  # fmt: skip
    prints = [zlib.crc32(room[3].points.tobytes() + room[3].labels.tobytes()) for room in rooms]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_pretraining_and_task_have_no_room_type_in_common():
    assert not set(PRETRAINING_ROOMS) & set(FINETUNING_ROOMS)
    assert {"bed", "sofa", "lamp", "curtain", "counter"} == set(FINETUNING_CLASSES) - set(PRETRAINING_CLASSES)


def test_every_class_of_the_task_occurs():
    splits = load_procedural_rooms({"train": 6, "test": 1}, num_points=8000)
    assert (splits["train"].class_counts > 0).all()
    assert splits["train"].class_names == list(FINETUNING_CLASSES)
    assert set(splits["test"][0]) == {"points", "colors", "labels", "sample_ids"}


def test_the_scanner_sees_what_is_in_front(rng):
    # Two walls, one behind the other, seen from the origin.
    plane = rng.uniform(-1, 1, (20_000, 2))
    near = np.column_stack([np.full(20_000, 2.0), plane])
    far = np.column_stack([np.full(20_000, 4.0), 2 * plane])
    points, colors, rows = scan(np.concatenate([near, far]), np.full((40_000, 3), 0.5), np.zeros((1, 3)), 10**6, rng)
    assert (rows >= 20_000).mean() < 0.03
    assert abs(np.median(points[:, 0]) - 2.0) < 0.02
    assert 80 < colors.mean() < 160


def test_the_scanner_is_denser_near_by(rng):
    floor = np.column_stack([rng.uniform(-6, 6, (60_000, 2)), np.zeros(60_000)])
    points, _, _ = scan(floor, np.full((60_000, 3), 0.5), np.array([[0, 0, 1.5]]), 10**6, rng)
    distance = np.linalg.norm(points[:, :2], axis=1)
    near, far = ((distance > low) & (distance < low + 1) for low in (1.5, 4.5))
    assert near.sum() / (1.5 + 2.5) > 1.5 * far.sum() / (4.5 + 5.5)
    assert distance.min() > 0.5  # nothing right below


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"room_types": ["cellar"]}, r"Unknown room types \['cellar'\]"),
        ({"split": "dev"}, "Unknown split 'dev'"),
        ({"num_rooms": 0}, "num_rooms must be at least 1"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ProceduralRooms(**options)
    with pytest.raises(ValueError, match="Unknown room type 'cellar'"):
        make_room("cellar")
