from pathlib import Path

import numpy as np
import pytest

from point_peft_hf.data.scenes import Scene

SCENES = Path(__file__).resolve().parents[4] / "shared" / "data" / "scenes"


@pytest.fixture
def real_scenes():
    if not SCENES.is_dir():
        pytest.skip("needs the scans of data/scenes")
    return SCENES


@pytest.fixture
def scene(rng):
    """60 points of three classes, one of them unlabelled."""
    return Scene.make(
        rng.uniform(0, 2, (60, 3)).astype(np.float32),
        rng.integers(2, 256, (60, 3)).astype(np.uint8),
        rng.normal(size=(60, 3)),
        np.append(np.arange(59) % 3, -1),
    )


def write_room(folder, objects, colors=True):
    """Write a room in the layout of S3DIS: a table of points for each object's name."""
    for name, points in objects.items():
        file = folder / "Annotations" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savetxt(file, np.column_stack([points, np.full((len(points), 3), 100)]) if colors else points, fmt="%.3f")
    table = np.concatenate(list(objects.values()))
    np.savetxt(folder / f"{folder.name}.txt", np.column_stack([table, np.full((len(table), 3), 100)]), fmt="%.3f")


@pytest.fixture
def make_rooms(rng):
    """Write rooms in the layout of S3DIS into areas: `make_rooms(root, {"Area_1": 2}, ("wall", "chair"))`."""

    def make(root, areas, classes=("wall", "chair")):
        for area, number in areas.items():
            for index in range(number):
                objects = {f"{name}_1": rng.uniform(0, 1, (30, 3)) + place for place, name in enumerate(classes)}
                write_room(root / area / f"office_{index}", objects)
        return root

    return make
