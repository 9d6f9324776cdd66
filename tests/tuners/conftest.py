"""Tiny backbones and adapters. A new backbone or type takes part in these tests by one line here."""

import copy
import importlib.util
import os
import re
import sys
import types
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch import nn

import point_peft_hf as pp


def _load(name: str, path: Path):
    """A module from a file, which other modules can import by this name."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _load_example():
    """The type in CONTRIBUTING.md, copied as it stands."""
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    module = sys.modules["contributed_type"] = types.ModuleType("contributed_type")
    exec(compile(code, "CONTRIBUTING.md", "exec"), vars(module))
    return module


TOYS = _load("point_peft_toys", Path(__file__).with_name("toys.py"))
EXAMPLE = _load_example()
NUM_CLASSES = 5
BLOCKS = {
    "num_attention_heads": 6,
    "patch_hidden_sizes": (16, 32, 64),
    "classifier_hidden_size": 32,
    "num_labels": NUM_CLASSES,
    "initializer_range": 0.2,
}
SINGLE_STAGE = {**BLOCKS, "hidden_size": 48, "num_hidden_layers": 3, "num_groups": 16, "group_size": 8}
STAGES = {
    **BLOCKS,
    "hidden_sizes": (12, 24, 48),
    "depths": (1, 1, 2),
    "num_groups": (32, 16, 8),
    "group_sizes": (8, 4, 4),
    # The clouds are wider than the unit sphere: with the published radii each token would see itself alone.
    "attention_radii": (1.0, 2.0, 3.0),
}

BACKBONES = {
    "point_mae": (pp.PointMAEForClassification, pp.PointMAEConfig, SINGLE_STAGE),
    "point_bert": (pp.PointBertForClassification, pp.PointBertConfig, {**SINGLE_STAGE, "patch_embedding_size": 32}),
    "point_m2ae": (pp.PointM2AEForClassification, pp.PointM2AEConfig, STAGES),
    "point_gpt": (pp.PointGPTForClassification, pp.PointGPTConfig, SINGLE_STAGE),
    "recon": (pp.ReConForClassification, pp.ReConConfig, SINGLE_STAGE),
}
TYPES = {
    "geometry": (pp.GeometryAdapterConfig, {}),
    "prompt": (pp.PointPriorPromptConfig, {"num_prompt_tokens": 4}),
    "point_peft": (pp.PointPeftConfig, {"num_prompt_tokens": 4}),
    "dapt": (pp.DAPTConfig, {"bottleneck_size": 8}),
    "idpt": (pp.IDPTConfig, {"num_neighbors": 4}),
    "ppt": (pp.PPTConfig, {"num_prompt_groups": 6, "prompt_group_size": 8, "bottleneck_size": 8}),
    "stag": (pp.STAGConfig, {"rank": 6, "num_neighbors": 4}),
    "pointgst": (pp.PointGSTConfig, {"bottleneck_size": 6, "local_size": 4}),
    "pointlora": (pp.PointLoRAConfig, {"r": 2, "bottleneck_size": 6, "scales": [[24, 8, 6], [12, 8, 2]]}),
    "gaprompt": (pp.GAPromptConfig, {"num_prompt_tokens": 4, "prompt_depth": 2, "bottleneck_size": 4}),
    **{name: (config_class, {}) for name, config_class in TOYS.TOYS.items()},
    "contributed": (EXAMPLE.TokenScaleConfig, {}),
}
# Types whose adapters read out other features, so that they always bring a head of their own.
OWN_HEAD = {"kept_token", "dapt", "idpt", "ppt", "stag", "gaprompt"}
# Types whose adapters act before they are trained: prompts join the attention, or the read-out is another one.
ACTIVE_WHEN_FRESH = {"prompt", "point_peft", "pointlora", *OWN_HEAD, *TOYS.ACTIVE_TOYS}
# Types whose published initialisation leaves the frozen function as it is.
IDENTITY_AS_PUBLISHED = {"pointgst"}
BANK_TYPES = [name for name, (config_class, _) in TYPES.items() if hasattr(config_class, "use_bank")]
CASES = (*TYPES, *(f"{name}+bank" for name in BANK_TYPES))


def pytest_collection_modifyitems(config, items):
    """Choose backbones for the tests of the types; `POINT_PEFT_ALL_BACKBONES=1` runs every type on every backbone.

    Each toy is on one backbone: they are there for the contract, which all backbones share. The other types are on
    Point-MAE and on one other backbone, in turn from test to test.
    """
    if os.environ.get("POINT_PEFT_ALL_BACKBONES"):
        return
    first, *others = BACKBONES
    toys = {name: list(BACKBONES)[number % len(BACKBONES)] for number, name in enumerate([*TOYS.TOYS, "contributed"])}
    kept, left_out = [], []
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        backbone_name = parameters.get("backbone_name")
        types = {str(parameters[name]).partition("+")[0] for name in ("case", "type_case") if name in parameters}
        wanted = {toys[name] for name in types if name in toys}
        if types and not wanted:
            turn = zlib.crc32(f"{item.originalname} {sorted(types)}".encode())
            wanted = {first, others[turn % len(others)]}
        is_left_out = types and backbone_name is not None and backbone_name not in wanted
        (left_out if is_left_out else kept).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


@cache
def _backbone(name: str, options: tuple) -> nn.Module:
    model_class, config_class, fields = BACKBONES[name]
    torch.manual_seed(0)
    model = model_class(config_class(**{**fields, **dict(options)})).eval()
    # Pre-trained norms are neither 1 nor 0, and running statistics neither 0 nor 1.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.8, 1.2)
    return model


@dataclass
class Case:
    """An adapter type, with or without a bank."""

    name: str

    @property
    def type_name(self) -> str:
        return self.name.partition("+")[0]

    @property
    def uses_bank(self) -> bool:
        return self.name.endswith("+bank")

    @property
    def holds_bank(self) -> bool:
        """Whether the type has a bank, be it empty."""
        return self.type_name in BANK_TYPES

    @property
    def is_identity_when_fresh(self) -> bool:
        """Whether a fresh adapter leaves the frozen function as it is."""
        return self.type_name not in ACTIVE_WHEN_FRESH

    @property
    def is_identity_as_published(self) -> bool:
        """Whether an adapter that is initialised as published leaves the frozen function as it is."""
        return self.type_name in IDENTITY_AS_PUBLISHED

    @property
    def is_in_every_block(self) -> bool:
        """Whether the type has something in each block, and can do without a head."""
        return self.type_name not in ("moved_points", "second_set", "sparse", "shared", *OWN_HEAD)

    @property
    def brings_modules(self) -> bool:
        """Whether an adapter of the type always brings a module of the backbone, so that only one can be active."""
        return self.type_name in ("saved_norm", *OWN_HEAD)

    @property
    def trains_embedding(self) -> bool:
        """Whether the type trains the layers that embed groups."""
        return self.type_name in ("pointlora", "ppt")

    @property
    def without_head(self) -> dict:
        """Fields that leave out the head, where the type does not need one of its own."""
        return {} if self.type_name in OWN_HEAD else {"modules_to_save": []}

    def config(self, **fields):
        config_class, defaults = TYPES[self.type_name]
        return config_class(**{**defaults, **fields})

    def attach(self, model: nn.Module, adapter_name: str = "default", **fields):
        """Attach to a backbone, and build the bank."""
        torch.manual_seed(1)
        model = get_peft_model(model, self.config(**fields), adapter_name=adapter_name)
        if self.uses_bank:
            clouds = torch.randn(9, 128, 3, generator=torch.Generator().manual_seed(7))
            pp.build_point_prior_bank(model, [{"points": clouds, "labels": torch.arange(9)}], progress=False)
        return model


@pytest.fixture
def make_backbone():
    """Build a backbone with the same weights each time: `make_backbone("point_mae", num_labels=3)`."""

    def make(name: str = "point_mae", **options) -> nn.Module:
        return copy.deepcopy(_backbone(name, tuple(sorted(options.items()))))

    return make


@pytest.fixture(params=BACKBONES)
def backbone_name(request) -> str:
    return request.param


@pytest.fixture
def backbone(make_backbone, backbone_name) -> nn.Module:
    """Each backbone in turn, in eval mode."""
    return make_backbone(backbone_name)


@pytest.fixture(params=CASES)
def case(request) -> Case:
    """Each type in turn, prompts with and without a bank."""
    return Case(request.param)


@pytest.fixture(params=TYPES)
def type_case(request) -> Case:
    """Each type in turn."""
    return Case(request.param)


@pytest.fixture
def points() -> torch.Tensor:
    return torch.randn(4, 128, 3, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([0, 1, 2, 3])


@pytest.fixture
def logits():
    """Predict: `logits(model, points)`, without gradient; leaves the model in eval mode."""

    def predict(model: nn.Module, points: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(points).logits

    return predict


@pytest.fixture
def train(points, labels):
    """Train for a few steps: `train(model, steps=3)`. Leaves the model in train mode."""

    def run(model: nn.Module, steps: int = 3, lr: float = 1e-2) -> None:
        torch.manual_seed(2)
        model.train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
        for _ in range(steps):
            optimizer.zero_grad()
            model(points, labels=labels).loss.backward()
            optimizer.step()

    return run
