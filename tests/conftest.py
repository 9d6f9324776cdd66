import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    # Tests run side by side, one to a core.
    torch.set_num_threads(1)

# No test talks to the real Hub, unless a person wants it to. huggingface_hub reads these when it is imported, hence
# here; tests/io answers at this address, and everywhere else the connection is refused.
_HUB_SOCKET = socket.socket()
_HF_HOME = tempfile.TemporaryDirectory(prefix="point_peft_hf_tests_")
if "POINT_PEFT_LIVE_HUB" not in os.environ:
    _HUB_SOCKET.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _HUB_SOCKET.bind(("127.0.0.1", 0))
    for _name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ.pop(_name, None)
    os.environ.update(
        HF_ENDPOINT=f"http://127.0.0.1:{_HUB_SOCKET.getsockname()[1]}",
        HF_HOME=_HF_HOME.name,
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_DISABLE_XET="1",
    )


@pytest.fixture(scope="session")
def hub_socket() -> socket.socket:
    """The socket at the address of the Hub; it does not listen yet."""
    return _HUB_SOCKET


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Folder of reference values computed with the published research code; tests that want it skip without it."""
    default = Path(__file__).resolve().parents[2] / "shared" / "reference"
    folder = Path(os.environ.get("POINT_PEFT_REFERENCE", default))
    if not folder.is_dir():
        pytest.skip("no reference values: set POINT_PEFT_REFERENCE to their folder")
    return folder


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory) -> str:
    """Folder of an untrained backbone, as pre-training leaves one: no head, no class token."""
    # Only here: importing the package imports huggingface_hub, and that reads its environment.
    from point_peft_hf import PointCloudProcessor, PointMAEConfig, PointMAEModel

    folder = tmp_path_factory.mktemp("backbone")
    config = PointMAEConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_groups=8,
        group_size=8,
        patch_hidden_sizes=(8, 16, 16),
        position_hidden_size=8,
        classifier_hidden_size=16,
    )
    PointMAEModel(config, use_class_token=False).save_pretrained(folder)
    PointCloudProcessor(num_points=128).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def locked_elsewhere():
    """Lock a folder in another process: `with locked_elsewhere(folder) as process`."""
    from point_peft_hf import locks

    hold = """
import runpy, sys
with runpy.run_path(sys.argv[1])["locked_folder"](sys.argv[2]):
    print("locked", flush=True)
    sys.stdin.read()
"""

    @contextmanager
    def lock(folder: Path) -> Iterator[subprocess.Popen]:
        # The module by its path, which is faster than importing the package.
        command = [sys.executable, "-c", hold, locks.__file__, str(folder)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout.readline() == "locked\n"
            yield process
        finally:
            process.communicate()

    return lock
