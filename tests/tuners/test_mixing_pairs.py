"""Any two types on one backbone: both of ours, or one of ours and one of PEFT's, either work or are refused."""

import copy
import itertools

import pytest
import torch
from peft import BOFTConfig, IA3Config, LNTuningConfig, LoHaConfig, LoraConfig, OFTConfig

import point_peft_hf as pp

OWN = {
    "geometry": lambda: pp.GeometryAdapterConfig(init_weights=False),
    "prompt": lambda: pp.PointPriorPromptConfig(num_prompt_tokens=4, use_bank=False, init_weights=False),
    "point_peft": lambda: pp.PointPeftConfig(num_prompt_tokens=4, use_bank=False, init_weights=False),
    "pointgst": lambda: pp.PointGSTConfig(bottleneck_size=6, local_size=4, init_weights=False),
    "pointlora": lambda: pp.PointLoRAConfig(r=2, scales=[[12, 8, 4]], mask_loss_weights=[0.1], init_weights=False),
}
# They read out features of their own.
OWN_HEAD = {
    "dapt": lambda: pp.DAPTConfig(bottleneck_size=8, init_weights=False),
    "idpt": lambda: pp.IDPTConfig(num_neighbors=4, init_weights=False),
    "ppt": lambda: pp.PPTConfig(num_prompt_groups=6, prompt_group_size=8, init_weights=False),
    "stag": lambda: pp.STAGConfig(rank=6, num_neighbors=4, init_weights=False),
    "gaprompt": lambda: pp.GAPromptConfig(num_prompt_tokens=4, init_weights=False),
}
FOREIGN = {
    "lora": lambda: LoraConfig(r=2, target_modules=["q_proj", "fc1"], init_lora_weights=False),
    "dora": lambda: LoraConfig(r=2, target_modules=["out_proj"], use_dora=True, init_lora_weights=False),
    "ia3": lambda: IA3Config(target_modules=["v_proj", "fc2"], feedforward_modules=["fc2"], init_ia3_weights=False),
    "oft": lambda: OFTConfig(oft_block_size=4, target_modules=["q_proj"], init_weights=False),
    "boft": lambda: BOFTConfig(boft_block_size=4, target_modules=["k_proj"], init_weights=False),
    "loha": lambda: LoHaConfig(r=2, target_modules=["fc2"], init_weights=False),
    "norms": lambda: LNTuningConfig(),
}
ALL = OWN | OWN_HEAD | FOREIGN
WITH_HEAD = list(itertools.combinations(OWN_HEAD, 2))
PAIRS = [pair for pair in itertools.combinations(OWN | OWN_HEAD, 2) if pair not in WITH_HEAD]
PAIRS += list(itertools.product(OWN | OWN_HEAD, FOREIGN))
# Every second pair the other way round.
PAIRS = [pair if number % 2 else pair[::-1] for number, pair in enumerate(PAIRS)]


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_groups": 8, "group_size": 8}
    widths = {"patch_hidden_sizes": (8, 16, 16), "position_hidden_size": 8, "classifier_hidden_size": 16}
    config = pp.PointMAEConfig(**sizes, **widths, num_labels=4, initializer_range=0.2)
    return pp.PointMAEForClassification(config).eval()


@pytest.fixture
def points():
    return torch.randn(4, 48, 3, generator=torch.Generator().manual_seed(5))


def attach(backbone, names):
    torch.manual_seed(1)
    return pp.add_adapters(copy.deepcopy(backbone), {name: ALL[name]() for name in names})


def test_the_types_are_all_there():
    own = {c.__name__ for c in vars(pp).values() if isinstance(c, type) and issubclass(c, pp.tuners.PointTunerConfig)}
    others = {"PointTunerConfig", "VoxelAdapterConfig", "PatchPromptConfig"}  # the last two are for scenes
    assert {type(make()).__name__ for make in (OWN | OWN_HEAD).values()} == own - others


@pytest.mark.parametrize("names", PAIRS, ids=" ".join)
def test_two_types_work_together(backbone, points, labels, train, logits, tmp_path, names):
    model = attach(backbone, names)
    train(model, steps=1)
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    # STAG reads the tokens out in front of the final norm, which Point-PEFT trains.
    assert all("layernorm" in name and set(names) == {"stag", "point_peft"} for name in without), without
    together = logits(model, points)
    pp.save_adapters(model, tmp_path)
    loaded = copy.deepcopy(backbone)
    pp.load_adapters(loaded, tmp_path)
    assert torch.equal(logits(loaded, points), together)
    for name in names:
        pp.set_adapters(model, name)
        # Each has its part in what both compute.
        assert not torch.equal(logits(model, points), together), name
    pp.set_adapters(model, list(names))
    assert torch.equal(logits(model, points), together)
    model.disable_adapters()
    assert torch.equal(logits(model, points), logits(copy.deepcopy(backbone).requires_grad_(False), points))
    model.enable_adapters()
    assert torch.equal(logits(model, points), together)


@pytest.mark.parametrize("names", WITH_HEAD, ids=" ".join)
def test_two_heads_of_their_own_are_refused(backbone, names):
    with pytest.raises(ValueError, match=f"'{names[0]}' .* and '{names[1]}' .* cannot be active together"):
        attach(backbone, names)
    model = attach(backbone, names[:1])
    with pytest.raises(ValueError, match="cannot be active together"):
        pp.add_adapters(model, {names[1]: ALL[names[1]]()})
    assert list(model.peft_config) == [names[0]]


@pytest.mark.parametrize("name", OWN_HEAD)
def test_who_needs_a_head_gets_it(backbone, name):
    model = attach(backbone, ["geometry", name])
    assert model.peft_config["geometry"].modules_to_save == []
    assert "classifier" in model.peft_config[name].modules_to_save
    with pytest.raises(ValueError, match=f"'{name}' of type .* needs a head of its own, but adapter 'geometry' bri"):
        pp.add_adapters(attach(backbone, ["geometry"]), {name: ALL[name]()})


def test_modules_beyond_the_task_belong_to_the_first_that_trains_them(backbone):
    def extra(model, name):
        return [module for module in model.peft_config[name].modules_to_save if module not in model.task_module_names]

    model = attach(backbone, ["geometry", "point_peft", "pointlora"])
    assert extra(model, "geometry") == []
    assert extra(model, "point_peft") == ["layernorm"]
    embedding = extra(model, "pointlora")
    assert "position_embedding" in embedding
    model = attach(backbone, ["pointlora", "ppt"])
    assert extra(model, "pointlora") == embedding
    assert model.peft_config["ppt"].modules_to_save == list(model.task_module_names)


@pytest.mark.parametrize("name", OWN_HEAD)
def test_selected_tokens_do_not_mix_with_another_read_out(backbone, points, logits, tmp_path, name):
    """PointLoRA takes the maximum of selected tokens and patch tokens, which is not what the other reads out."""
    model = attach(backbone, [name, "pointlora"])
    slots = [module for module in model.modules() if isinstance(module, pp.slots.ReadoutSlot)]
    outer = next(module for module in model.modules() if getattr(module, "slot", None) in slots)
    inputs = []
    outer.base_layer.register_forward_hook(lambda module, args, output: inputs.append(output))
    outer.register_forward_hook(lambda module, args, output: inputs.append(output))
    logits(model, points)
    assert torch.equal(*inputs)
    assert inputs[0].shape[1] == model.classifier.modules_to_save[name].dense1.in_features
