import os
from pathlib import Path

import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def cache_dir(tmp_path_factory, monkeypatch):
    """Keep the cache of parsed clouds out of the home folder."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("POINT_PEFT_HF_CACHE", str(folder))
    return folder


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def modelnet40_dev():
    if not (SHARED / "modelnet40_dev").is_dir():
        pytest.skip("needs the clouds of modelnet40_dev")
    return SHARED / "modelnet40_dev"


@pytest.fixture
def coseg_parts():
    if not (SHARED / "coseg_parts").is_dir():
        pytest.skip("needs the clouds of coseg_parts")
    return SHARED / "coseg_parts"


@pytest.fixture
def write(tmp_path):
    """Write a file of text or bytes into the temporary folder."""

    def write_file(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


@pytest.fixture
def make_scans(rng):
    """Write a folder a class of .xyz scans in metres, 40 to 3,000 points each."""

    def make(root, classes=("chair", "lamp", "table"), number=6):
        for name in classes:
            for index in range(number):
                path = root / name / f"scan_{index}.xyz"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.savetxt(path, rng.normal(size=(rng.integers(40, 3001), 3)) + [120.0, 4.0, 80.0], fmt="%.3f")
        return root

    return make


@pytest.fixture
def files_under():
    """List the files of a folder and the folders in it, hidden ones included."""

    def list_files(folder):
        return sorted(os.path.relpath(path, folder) for path in Path(folder).rglob("*") if path.is_file())

    return list_files
