import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Folder of reference values computed with the published research code; tests that want it skip without it."""
    default = Path(__file__).resolve().parents[2] / "shared" / "reference"
    folder = Path(os.environ.get("POINT_PEFT_REFERENCE", default))
    if not folder.is_dir():
        pytest.skip("no reference values: set POINT_PEFT_REFERENCE to their folder")
    return folder
