import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from peft import LoraConfig, get_peft_model

from point_peft_hf import (
    AutoModelForPointCloudClassification,
    GeometryAdapterConfig,
    PointBertConfig,
    PointBertModel,
    PointCloudProcessor,
    PointM2AEConfig,
    PointM2AEModel,
    PointMAEConfig,
    PointMAEModel,
    PointPeftConfig,
    PointPriorPromptConfig,
    build_point_prior_bank,
)

CLASS_NAMES = ["cube", "cone", "torus"]
SIZES = {
    "num_attention_heads": 2,
    "patch_hidden_sizes": (8, 16, 16),
    "classifier_hidden_size": 16,
}
SINGLE_STAGE = SIZES | {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_groups": 8,
    "group_size": 8,
    "position_hidden_size": 8,
}
BACKBONES = {
    "point_mae": lambda: PointMAEModel(PointMAEConfig(**SINGLE_STAGE), use_class_token=False),
    "point_bert": lambda: PointBertModel(PointBertConfig(**SINGLE_STAGE)),
    "point_m2ae": lambda: PointM2AEModel(
        PointM2AEConfig(
            **SIZES,
            hidden_sizes=(8, 16, 24),
            depths=(1, 1, 1),
            num_groups=(32, 16, 8),
            group_sizes=(8, 4, 4),
        )
    ),
}
METHODS = {
    "geometry": lambda: GeometryAdapterConfig(init_weights=False),
    "prompt": lambda: PointPriorPromptConfig(init_weights=False),
    "point_peft": lambda: PointPeftConfig(init_weights=False),
    "lora": lambda: LoraConfig(
        r=2, target_modules=["q_proj", "fc1"], modules_to_save=["classifier", "class_token"], init_lora_weights=False
    ),
}


def _load_server():
    spec = importlib.util.spec_from_file_location("hub_server", Path(__file__).with_name("server.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def running_hub(hub_socket):
    if "POINT_PEFT_LIVE_HUB" in os.environ:
        pytest.skip("the real Hub is used")
    hub = _load_server().run_in_background(hub_socket)
    if huggingface_hub.constants.ENDPOINT != hub.url:
        pytest.skip("huggingface_hub was imported before tests/conftest.py could tell it where the Hub is")
    yield hub
    hub.shutdown()


@pytest.fixture
def hub(running_hub, empty_cache, monkeypatch):
    """A Hub without repositories, an empty cache, and the token of alice."""
    running_hub.reset()
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    return running_hub


@pytest.fixture
def empty_cache():
    """Forget everything that was downloaded; call it to do so again."""

    def clear():
        shutil.rmtree(huggingface_hub.constants.HF_HUB_CACHE, ignore_errors=True)

    clear()
    return clear


@pytest.fixture(autouse=True)
def _no_internet(request, monkeypatch):
    if request.node.get_closest_marker("live_hub"):
        return
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):
            raise AssertionError(f"a test wants to talk to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def backbones(tmp_path_factory):
    """Folders of untrained backbones without heads, by model type."""
    folder = tmp_path_factory.mktemp("backbones")
    for name, make in BACKBONES.items():
        torch.manual_seed(7)
        make().save_pretrained(folder / name)
        PointCloudProcessor(num_points=64).save_pretrained(folder / name)
    return {name: str(folder / name) for name in BACKBONES}


@pytest.fixture(scope="session")
def load_backbone(backbones):
    """Load a backbone with a head for the classes of the tests."""

    def load(name="point_mae", source=None, **kwargs):
        labels = dict(enumerate(CLASS_NAMES))
        return AutoModelForPointCloudClassification.from_pretrained(
            source or backbones.get(name, name),
            num_labels=3,
            id2label=labels,
            label2id={label: index for index, label in labels.items()},
            **kwargs,
        )

    return load


@pytest.fixture(scope="session")
def make_adapter(load_backbone):
    """Attach an adapter to a backbone, with a bank, head and statistics that are not those of a fresh one."""

    def make(method="point_peft", backbone="point_mae", base_name=None, seed=0, num_points=64):
        torch.manual_seed(seed)
        model = load_backbone(backbone)
        if base_name is not None:
            model.name_or_path = model.config.name_or_path = base_name
        model = get_peft_model(model, METHODS[method]())
        if getattr(model.active_peft_config, "use_bank", False):
            build_point_prior_bank(model, [{"points": torch.rand(16, 64, 3)}], progress=False)
        model.train()
        model(points=torch.rand(4, num_points, 3), labels=torch.arange(4) % 3)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def points():
    return torch.rand(4, 64, 3, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="session")
def logits(points):
    def compute(model):
        with torch.no_grad():
            return model.eval()(points=points).logits

    return compute


@pytest.fixture
def second_process(tmp_path):
    """Run code in a Python of its own, with a Hugging Face home of its own (by default an empty one)."""

    def run(code, home="home", **environment):
        environment = {**os.environ, "HF_HOME": str(tmp_path / home), **environment}
        command = [sys.executable, "-W", "ignore", "-c", code]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture(scope="session")
def record():
    """What training records, made up."""
    return {
        "method": "point_peft",
        "arguments": {
            "data": "/home/somebody/data/ModelNet40",
            "output_dir": "/home/somebody/outputs",
            "num_train_epochs": 10,
            "per_device_train_batch_size": 32,
            "weight_decay": 0.05,
            "augmentation": "scale_translate",
            "seed": 5,
        },
        "learning_rate": 2e-3,
        "class_names": CLASS_NAMES,
        "clouds": {"train": 400, "validation": 100, "test": 600},
        "parameters": {"total": 30000, "trainable": 2000, "received_gradient": 2000},
        "best_epoch": 9,
        "validation_accuracy": 0.91,
        "test": {"accuracy": 0.9, "mean_class_accuracy": 0.88},
        "versions": {"python": "3.11.2", "torch": "2.13.0", "peft": "0.21.2"},
    }


@pytest.fixture(scope="session")
def read_json():
    return lambda path: json.loads(Path(path).read_text())
