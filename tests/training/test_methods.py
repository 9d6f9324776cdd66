from pathlib import Path

import pytest
import torch
from peft import IA3Config, PeftModel

from point_peft_hf.io.card import is_public
from point_peft_hf.training import (
    METHODS,
    ClassificationTask,
    find_method,
    load_backbone,
    parse_arguments,
    prepare_method,
)

NAMES = ["bed", "sofa", "mug"]


def trainable_names(model):
    return [name for name, p in model.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_the_head_and_what_it_says(method, tiny_backbone):
    model = prepare_method(method, load_backbone(tiny_backbone, NAMES))
    names = trainable_names(model)
    assert any("classifier" in name for name in names)
    # They save it, but do not train it.
    assert any("class_token" in name for name in names) == (method not in ("stag", "head"))
    others = [name for name in names if "classifier" not in name and "class_token" not in name]
    assert isinstance(model, PeftModel) == (method != "full")
    if method in ("linear", "head"):
        assert others == []
    elif method == "full":
        assert any("layers" in name for name in others)
    else:
        assert isinstance(model.active_peft_config, METHODS[method].config_class)
        mark = "point_peft_bias" if method == "bias" else model.base_model.prefix
        assert any(mark in name for name in others)
    if method != "full":
        assert not any(name.endswith(("fc1.weight", "q_proj.weight", "patch_embedding")) for name in names)


def test_options_reach_the_configuration(tiny_backbone):
    model = prepare_method("lora", load_backbone(tiny_backbone, NAMES), r=3)
    assert model.active_peft_config.r == 3
    model = prepare_method("bias", load_backbone(tiny_backbone, NAMES), layers_to_transform=[0])
    shifts = [name for name in trainable_names(model) if "_slot" in name]
    assert shifts
    assert all("layers.0." in name for name in shifts)


@pytest.mark.parametrize(
    ("method", "config", "message"),
    [
        ("point_peft", {"bottleneck": 4, "use_geometry": False}, r"PointPeftConfig has no fields \['bottleneck'\]"),
        ("point_peft", {"bottleneck_size": 0}, "`bottleneck_size` must be a number of at least 1, got 0"),
        ("lora", {"rank": 4}, r"LoraConfig has no fields \['rank'\]. It has .*'r'"),
        ("lora", 3, "--config must be a JSON object with names and values, got 3"),
        ("full", {"r": 3}, r"no options, got \['r'\]"),
    ],
)
def test_options_are_checked_before_anything_is_loaded(method, config, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments({"method": method, "config": config})


def test_unknown_methods_and_options_of_full_are_refused(tiny_backbone):
    backbone = load_backbone(tiny_backbone, NAMES)
    with pytest.raises(ValueError, match="no method 'lore'.*point_peft"):
        prepare_method("lore", backbone)
    with pytest.raises(ValueError, match=r"no options, got \['r'\]"):
        prepare_method("full", backbone, r=3)


TYPE = """
from dataclasses import dataclass
import torch
from peft import LoraConfig, PeftConfig
from torch import nn
from point_peft_hf import PointPeftConfig
from point_peft_hf.slots import OutputSlot
from point_peft_hf.tuners import PointTunerConfig, SlotLayer, SlotTuner, register_method


@dataclass
class Config(PointTunerConfig):
    start: float = 0.0


class Shift(nn.Module):
    def __init__(self, size, start):
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), start))


class Layer(SlotLayer):
    slot_class = OutputSlot
    parts = ("shift",)

    def create_parts(self, adapter_name, config, slot_name):
        return {"shift": Shift(self.slot.hidden_size, config.start)}

    def adapt(self, name, tokens):
        return tokens.with_features(tokens.features + self.part("shift", name).weight)


@register_method("shift_of_a_module", Config)
class Model(SlotTuner):
    layer_classes = (Layer,)


@dataclass
class Forgotten(PointPeftConfig):
    pass
"""


@pytest.fixture(scope="module")
def own_types(tmp_path_factory):
    """The folder of a package of somebody else, on the path."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_types").mkdir()
    (folder / "own_types" / "__init__.py").touch()
    (folder / "own_types" / "shift.py").write_text(TYPE)
    (folder / "own_types" / "broken.py").write_text("import point_peft_hf\nprint(1 / 0)\n")
    (folder / "own_types" / "needy.py").write_text("import a_package_that_is_not_here\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


def test_a_type_of_somebody_else_is_found_by_its_module(own_types, tiny_backbone):
    name = "own_types.shift:Config"
    model = prepare_method(name, load_backbone(tiny_backbone, NAMES), start=0.5)
    assert model.active_peft_config.peft_type == "SHIFT_OF_A_MODULE"
    # As all types of this package, it trains and saves the modules of the task.
    names = trainable_names(model)
    assert {name.split(".")[-2] for name in names if "shift" in name} == {"default"}
    assert any("classifier" in name for name in names)
    shifts = [p for name, p in model.named_parameters() if "shift_of_a_module_shift" in name]
    assert len(shifts) == 2
    assert all(torch.equal(shift, torch.full_like(shift, 0.5)) for shift in shifts)
    arguments = parse_arguments({"method": name})[2].for_method(name, ClassificationTask)
    assert (arguments.learning_rate, arguments.warmup_steps) == (4e-3, 0.3)
    assert Path(arguments.output_dir).name == "own_types.shift.Config"


def test_a_type_of_peft_is_found_by_its_module_and_brings_the_head(tiny_backbone):
    model = prepare_method("peft:IA3Config", load_backbone(tiny_backbone, NAMES))
    assert isinstance(model.active_peft_config, IA3Config)
    assert any("classifier" in name for name in trainable_names(model))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_types.shift.Config", "no method 'own_types.shift.Config'.*point_peft.*package.module:Config"),
        ("own_types.shift:", "named as package.module:Config, got 'own_types.shift:'"),
        (":Config", "named as package.module:Config, got ':Config'"),
        ("own-types:Config", "named as package.module:Config, got 'own-types:Config'"),
        ("own_types.shift:Config:Config", "named as package.module:Config"),
        ("not_here.shift:Config", "there is no module 'not_here' on the Python path.*PYTHONPATH=FOLDER"),
        ("own_types.not_here:Config", "there is no module 'own_types.not_here' on the Python path"),
        ("own_types.broken:Config", "own_types.broken fails with ZeroDivisionError: division by zero"),
        ("own_types.needy:Config", "own_types.needy fails with ModuleNotFoundError.*a_package_that_is_not_here"),
        ("own_types.shift:Confg", r"has no 'Confg'. Its configuration classes are \['Config', 'Forgotten'\]"),
        ("own_types.shift:Model", "'own_types.shift:Model' is .*Model.*, not a configuration class.*PeftConfig"),
        ("own_types.shift:TYPE", "has no 'TYPE'"),
        ("own_types.shift:torch", "is <module 'torch'.*, not a configuration class"),
        ("own_types.shift:PeftConfig", "belongs to no PEFT type"),
        # It inherits the name of Point-PEFT's type, and would silently be trained as that.
        ("own_types.shift:Forgotten", "belongs to no PEFT type. Register .*@register_method.*Forgotten"),
    ],
)
def test_what_is_no_type_of_somebody_else(name, message, own_types):
    with pytest.raises(ValueError, match=message):
        find_method(name)
    with pytest.raises(ValueError, match=message):
        parse_arguments({"method": name})


def test_a_backbone_knows_its_classes_and_goes_by_the_name_it_was_asked_for(tiny_backbone, monkeypatch):
    backbone = load_backbone(tiny_backbone, NAMES)
    assert backbone.config.id2label == {0: "bed", 1: "sofa", 2: "mug"}
    assert backbone.name_or_path == tiny_backbone
    # A relative folder must not look like a repository elsewhere.
    folder = Path(tiny_backbone)
    monkeypatch.chdir(folder.parent.parent)
    name = load_backbone(f"{folder.parent.name}/{folder.name}", NAMES).name_or_path
    assert Path(name).resolve() == folder
    monkeypatch.chdir("/")
    assert not is_public(name)


def test_the_warm_up_is_that_of_the_method_unless_given():
    shares = [
        parse_arguments(given)[2].for_method(name, ClassificationTask).warmup_steps
        for name, given in (
            ("point_peft", {}),
            ("lora", {}),
            ("point_peft", {"warmup_steps": 0.2}),
            ("lora", {"warmup_steps": 7}),
        )
    ]
    assert shares == [0.3, 0.1, 0.2, 7]


@pytest.mark.parametrize("name", ["boft", "hira", "c3a", "road", "vblora"])
def test_a_type_of_peft_by_its_name(name, tiny_backbone):
    options = {"c3a": {"block_size": 8}, "road": {"group_size": 8}, "vblora": {"vector_length": 8}}.get(name, {})
    model = prepare_method(name, load_backbone(tiny_backbone, NAMES), **options)
    assert model.active_peft_config.peft_type == name.upper()
    names = trainable_names(model)
    assert any("classifier" in trained for trained in names)
    assert any("layers" in trained for trained in names)
    assert parse_arguments({"method": name})[2].for_method(name, ClassificationTask).learning_rate == 4e-3


def test_fields_that_fit_published_widths():
    assert find_method("c3a").config().block_size == 16
    assert find_method("road").config(group_size=32).group_size == 32


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "prefix_tuning",
            "'prefix_tuning' of peft cannot be trained here: it puts tokens in front of those of a text",
        ),
        ("shadow", "cannot be trained here: it runs a second decoder"),
        # Types of this package go by the names of the table.
        ("geometry_adapter", "no method 'geometry_adapter'.*geometry.*a type of peft .*boft.*hira"),
    ],
)
def test_types_that_cannot_be_trained(name, message):
    with pytest.raises(ValueError, match=message):
        find_method(name)


def test_a_type_of_peft_that_does_not_fit_says_so(tiny_backbone):
    with pytest.raises(ValueError, match="24 must be divisible by `vector_length` 16"):
        prepare_method("vblora", load_backbone(tiny_backbone, NAMES))
