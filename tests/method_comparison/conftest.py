import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "method_comparison"))

TASK = {
    "description": "Tiny & quick.",
    "num_train_epochs": 1,
    "per_device_train_batch_size": 8,
    "num_points": 128,
    "seeds": [0, 1],
    "learning_rates": [1e-3, 4e-3],
    "search_seeds": [9],
    "settings": {"all_labels": {}, "labels_2": {"labels_per_class": 2}},
    "references": ["full/default"],
}


@pytest.fixture(scope="session")
def clouds_folder(tmp_path_factory):
    """Folder of a data set: balls, plates and sticks, 8 of each to learn from and 3 to test."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "shapes"
    for name, size in {"ball": (1, 1, 1), "plate": (1, 0.1, 1), "stick": (0.1, 1, 0.1)}.items():
        for index in range(11):
            path = folder / ("train" if index < 8 else "test") / name
            path.mkdir(parents=True, exist_ok=True)
            np.save(path / f"{index}.npy", rng.normal(size=(150, 3)) * size)
    return str(folder)


@pytest.fixture(scope="session")
def make_task(clouds_folder):
    """Write the folder of a task: `make_task(folder, {id: (config, params)}, **changes)`."""

    def make(folder, experiments, **changes):
        values = {
            name: value for name, value in ({"data": clouds_folder} | TASK | changes).items() if value is not None
        }
        folder.mkdir(parents=True)
        (folder / "default_training_params.json").write_text(json.dumps(values))
        for name, (config, params) in experiments.items():
            path = folder / "experiments" / name
            path.mkdir(parents=True)
            if config is not None:
                (path / "adapter_config.json").write_text(json.dumps(config))
            if params is not None:
                (path / "training_params.json").write_text(json.dumps(params))
        return folder

    return make


@pytest.fixture(autouse=True, scope="module")
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)  # which a run sets
