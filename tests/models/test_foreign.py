import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from point_peft_hf import GeometryAdapterConfig, PointPeftConfig, PointPriorPromptConfig
from point_peft_hf.foreign import add_slots, enter_blocks


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).parents[2] / "examples" / "foreign_backbone.py"
    spec = importlib.util.spec_from_file_location("foreign_backbone", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def clouds(example):
    torch.manual_seed(3)
    return example.make_clouds(4)[0]


def plain_forward(model, points, example):
    """The forward pass of the toy model as it was before it knew of adapters."""
    neighborhoods, centers = example.group_points(points, num_groups=16, group_size=8)
    x = model.embed(neighborhoods).amax(dim=2) + model.pos(centers)
    for block in model.blocks:
        x = x + block.attn(block.norm1(x))
        x = x + block.mlp(block.norm2(x))
    return model.head(model.norm(x).amax(dim=1))


SHIFTED = ("norm1_slot", "out_proj_slot", "norm2_slot", "fc1_slot", "fc2_slot")


@torch.no_grad()
def test_slots_change_nothing(example, clouds):
    torch.manual_seed(0)
    plain = example.ToyPointTransformer()
    keys = list(plain.state_dict())
    slotted = add_slots(plain, hidden_size=32, group_size=8)
    assert list(slotted.state_dict()) == keys
    assert torch.equal(slotted(clouds), plain_forward(slotted, clouds, example))
    fresh = get_peft_model(slotted, GeometryAdapterConfig()).eval()
    assert torch.equal(fresh(clouds), plain_forward(example.build_backbone(), clouds, example))
    assert list(fresh.unload().state_dict()) == keys


@torch.no_grad()
def test_copy(example, clouds):
    model = example.build_backbone()
    assert torch.equal(copy.deepcopy(model)(clouds), model(clouds))


@torch.no_grad()
@pytest.mark.parametrize(
    "config",
    [
        GeometryAdapterConfig(init_weights=False),
        PointPriorPromptConfig(num_prompt_tokens=4, query="encoder", prompt_depth=2, init_weights=False),
        PointPeftConfig(num_prompt_tokens=4, query="encoder", prompt_depth=None, init_weights=False),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_adapters_work(example, clouds, config):
    model = get_peft_model(example.build_backbone(), config).eval()
    logits = model(clouds)
    base = plain_forward(example.build_backbone(), clouds, example)
    assert not torch.allclose(logits, base, atol=1e-4)
    torch.testing.assert_close(model(clouds[1:2]), logits[1:2], rtol=1e-4, atol=1e-5)
    with model.disable_adapter():
        assert torch.equal(model(clouds), base)
    assert "head" in config.modules_to_save
    inject_adapter_in_model(LoraConfig(target_modules=["qkv"]), model.base_model.model, adapter_name="lora")
    assert model(clouds).shape == (4, 2)


def test_all_biases_are_tuned(example, clouds):
    model = get_peft_model(example.build_backbone(), PointPeftConfig(use_prompts=False))
    shifted = {
        name
        for name, m in model.named_modules()
        if name.rpartition(".")[2] in SHIFTED and isinstance(m, BaseTunerLayer)
    }
    assert len(shifted) == 5 * 3
    assert "norm" in model.peft_config["default"].modules_to_save
    model.train()(clouds).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_example_trains_saves_and_loads(example, capsys):
    accuracies = example.main(steps=2)
    assert set(accuracies) == {"GEOMETRY_ADAPTER", "POINT_PRIOR_PROMPT", "POINT_PEFT"}
    assert capsys.readouterr().out.count("loads equal") == 3


def test_wrong_use_is_explained(example, clouds):
    model = example.ToyPointTransformer()
    with pytest.raises(ValueError, match=r"'layers'.*\['embed', 'blocks'\]"):
        add_slots(model, "layers", hidden_size=32, group_size=8)
    with pytest.raises(ValueError, match="no norm1, attn, norm2, mlp"):
        add_slots(model, "embed", hidden_size=32, group_size=8)
    with pytest.raises(ValueError, match="'cls_token'"):
        add_slots(model, hidden_size=32, group_size=8, task_modules=["cls_token"])
    with pytest.raises(ValueError, match="add_slots"):
        enter_blocks(model, torch.zeros(1, 4, 32), torch.zeros(1, 4, 3))
    with pytest.raises(ValueError, match="no slots"):
        get_peft_model(example.ToyPointTransformer(), GeometryAdapterConfig())
    add_slots(model, hidden_size=32, group_size=8)
    with pytest.raises(ValueError, match="only once"):
        add_slots(model, hidden_size=32, group_size=8)
    with pytest.raises(ValueError, match="group_centers"):
        enter_blocks(model, torch.zeros(1, 4, 32), torch.zeros(4, 3))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "`query`='tokens' needs a backbone of point_peft_hf, .* Use 'encoder'"),
        ({"query": "encoder", "bank_update": "queue"}, "`bank_update`='queue' needs .* Use 'none'"),
    ],
)
def test_what_a_foreign_model_cannot_do_for_a_bank_is_refused(example, fields, message):
    with pytest.raises(ValueError, match=message):
        get_peft_model(example.build_backbone(), PointPriorPromptConfig(num_prompt_tokens=4, **fields))


def test_plain_features_are_refused(example):
    model = get_peft_model(example.build_backbone(), GeometryAdapterConfig())
    with pytest.raises(ValueError, match="got no geometry.*enter_blocks"):
        model.base_model.model.blocks[0](torch.randn(2, 16, 32))


class OtherBlock(nn.Module):
    """A block with parts that timm's has: layer scale, stochastic depth, a parameter of its own."""

    def __init__(self, example):
        super().__init__()
        inner = example.Block(32, 4)
        self.norm1, self.attn, self.norm2, self.mlp = inner.norm1, inner.attn, inner.norm2, inner.mlp
        self.ls1, self.ls2 = nn.Linear(32, 32), nn.Linear(32, 32)
        self.drop_path = nn.Dropout(0.5)
        self.gamma = nn.Parameter(torch.ones(3))
        self.register_buffer("table", torch.ones(3))
        self.register_buffer("scratch", torch.ones(3), persistent=False)


@torch.no_grad()
def test_layer_scale_stochastic_depth_and_own_parameters(example):
    model = nn.Module()
    model.blocks = nn.ModuleList([OtherBlock(example)])
    keys = set(model.state_dict())
    add_slots(model, hidden_size=32, group_size=8)
    assert set(model.state_dict()) == keys
    assert {name for name, _ in model.named_buffers()} >= {"blocks.0.table", "blocks.0.scratch"}
    block, x = model.eval().blocks[0], torch.randn(2, 5, 32)
    expected = x + block.ls1(block.attn(block.norm1(x)))
    expected = expected + block.ls2(block.mlp(block.norm2(expected)))
    assert torch.equal(block(x), expected)
