"""Adapters on encoders of scenes: those of peft, ours, and those that belong to objects."""

import importlib.util
import sys
from pathlib import Path

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model

import point_peft_hf as pp

_SPEC = importlib.util.spec_from_file_location("tiny_scenes", Path(__file__).parents[1] / "models" / "scenes.py")
scenes = sys.modules["tiny_scenes"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(scenes)

VOXELS = scenes.make_voxels((70, 20))
LABELS = torch.arange(90) % 5
NO_GEOMETRY = {"use_geometry": False, "use_prompts": False}
OURS = {
    "voxel_adapter": (pp.VoxelAdapterConfig, {"bottleneck_size": 4}),
    "patch_prompt": (pp.PatchPromptConfig, {"num_prompt_tokens": 3}),
    "bias": (pp.PointPeftConfig, {**NO_GEOMETRY, "tune_biases": True}),
}
PEFTS = {
    "lora": (peft.LoraConfig, {"r": 2}),
    "ln_tuning": (peft.LNTuningConfig, {}),
    "ia3": (peft.IA3Config, {}),
    "beft": (peft.BeftConfig, {}) if hasattr(peft, "BeftConfig") else (peft.LoraConfig, {"r": 1, "bias": "all"}),
}


def make_backbone(variant="sonata", **fields):
    torch.manual_seed(0)
    return scenes.shake(pp.PointTransformerV3ForSemanticSegmentation(scenes.tiny_config(variant, **fields)))


@torch.no_grad()
def logits(model, voxels=VOXELS):
    return model.eval()(**voxels).logits


def train(model, steps=2):
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**VOXELS, labels=LABELS).loss.backward()
        optimizer.step()


@pytest.fixture(params=OURS)
def ours(request):
    config_class, fields = OURS[request.param]
    return lambda **more: config_class(**fields, **more)


@pytest.fixture(params=[*OURS, *PEFTS])
def make_config(request):
    if request.param in OURS:
        config_class, fields = OURS[request.param]
        return lambda: config_class(**fields)
    config_class, fields = PEFTS[request.param]
    return lambda: config_class(**fields, modules_to_save=["semantic_head"])


@pytest.mark.parametrize("variant", ["sonata", "utonia", "ptv3_legacy"])
def test_a_fresh_adapter_changes_nothing_and_all_of_it_is_trained(variant, ours):
    expected = logits(make_backbone(variant))
    model = get_peft_model(make_backbone(variant), ours())
    assert torch.equal(logits(model), expected)
    random = get_peft_model(make_backbone(variant), ours(init_weights=False))
    assert not torch.allclose(logits(random), expected)
    random.train()(**VOXELS, labels=LABELS).loss.backward()
    trained = {name for name, parameter in random.named_parameters() if parameter.requires_grad}
    assert trained
    for name, parameter in random.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (name in trained), name


def test_saving_loading_disabling_and_unloading(make_config, tmp_path):
    before = logits(make_backbone())
    model = get_peft_model(make_backbone(), make_config())
    train(model)
    after = logits(model)
    assert not torch.allclose(after, before)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_backbone(), tmp_path)
    assert torch.equal(logits(loaded), after)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    if model.peft_config["default"].peft_type.value in ("VOXEL_ADAPTER", "PATCH_PROMPT", "POINT_PEFT"):
        with pytest.raises(ValueError, match="cannot be merged"):
            model.merge_and_unload()
        assert torch.equal(logits(model.unload()), before)


def test_several_adapters(ours):
    model = get_peft_model(make_backbone(), ours(init_weights=False, modules_to_save=[]), "one")
    torch.manual_seed(1)
    model.add_adapter("two", ours(init_weights=False, modules_to_save=[]))
    first = logits(model)
    model.set_adapter("two")
    second = logits(model)
    assert not torch.allclose(first, second)
    model.base_model.set_adapter(["one", "two"])
    both = logits(model)
    model.delete_adapter("two")
    assert torch.equal(logits(model), first)
    assert not torch.allclose(both, first)


def test_types_together():
    model = pp.add_adapters(
        make_backbone(), {"a": pp.VoxelAdapterConfig(init_weights=False), "b": peft.LoraConfig(r=2)}
    )
    model.train()(**VOXELS, labels=LABELS).loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)


def test_adapters_see_each_cloud_alone(ours):
    model = get_peft_model(make_backbone(), ours(init_weights=False))
    together = logits(model)
    for number in range(2):
        alone = logits(model, scenes.cloud_of(VOXELS, number))
        rows = together[VOXELS["batch_index"] == number]
        assert (rows - alone).abs().max() < 1e-5 * alone.abs().max()


def test_half_precision_and_checkpointing(ours):
    model = get_peft_model(make_backbone().bfloat16(), ours(init_weights=False))
    own = {p.dtype for n, p in model.named_parameters() if p.requires_grad and "modules_to_save" not in n}
    assert own == {torch.float32}
    assert logits(model).dtype == torch.bfloat16
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = get_peft_model(make_backbone(), ours(init_weights=False)).train()
        if checkpointed:
            model.base_model.model.activation_checkpointing_enable()
            model.enable_input_require_grads()
        torch.manual_seed(0)
        model(**VOXELS, labels=LABELS).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, other in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, other)


def test_frozen_networks_keep_nothing_wide():
    """With LoRA half of the memory goes, and the gradients are those of networks that keep all."""

    def run(frozen):
        model = get_peft_model(make_backbone(), peft.LoraConfig(r=2, init_lora_weights=False)).train()
        for layer in model.modules():
            if hasattr(layer, "fc1"):
                # A weight that is trained as well makes the network keep what its gradient needs.
                layer.fc1.base_layer.weight.requires_grad_(not frozen)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
            loss = model(**VOXELS, labels=LABELS).loss
        loss.backward()
        grads = {n: p.grad for n, p in model.named_parameters() if "lora" in n}
        return kept, grads

    torch.manual_seed(0)
    kept, grads = run(frozen=True)
    torch.manual_seed(0)
    more, expected = run(frozen=False)
    wide = torch.Size([90, 48])
    assert wide in more
    assert wide not in kept
    for name, grad in expected.items():
        torch.testing.assert_close(grads[name], grad)


def test_blocks_are_chosen_by_number_and_width():
    config = pp.VoxelAdapterConfig(
        bottleneck_size=4, layers_to_transform=[0, 4], bottleneck_pattern={r".*stages\.2.*": 6}
    )
    model = get_peft_model(make_backbone(), config)
    shapes = {name: p.shape for name, p in model.named_parameters() if name.endswith("kernel")}
    assert sorted(tuple(shape) for shape in shapes.values()) == [(3, 3, 3, 4), (3, 3, 3, 6)]
    decoder = get_peft_model(make_backbone("sonata_decoder"), pp.VoxelAdapterConfig())
    assert sum(name.endswith("kernel") for name, _ in decoder.named_parameters()) == 5 + 3


@pytest.mark.parametrize("variant", ["sonata", "ptv3"])
@pytest.mark.parametrize("head_only", [False, True])
def test_a_linear_probe_trains_the_head_alone(variant, head_only):
    config = pp.PointPeftConfig(**NO_GEOMETRY, tune_biases=False)
    backbone = make_backbone(variant)
    frozen = {name: tensor.clone() for name, tensor in backbone.state_dict().items() if "semantic_head" not in name}
    model = get_peft_model(backbone, config)
    train(model)
    state = {name.replace("base_model.model.", ""): tensor for name, tensor in model.state_dict().items()}
    # The norms of a supervised model keep their statistics as well.
    assert all(torch.equal(state[name], tensor) for name, tensor in frozen.items())
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        f"base_model.model.semantic_head.modules_to_save.default.linear.{kind}" for kind in ("weight", "bias")
    ]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (peft.LoraConfig(r=2), {"qkv", "out_proj", "fc1", "fc2"}),
        (peft.LoHaConfig(r=2), {"qkv", "out_proj", "fc1", "fc2"}),
        (peft.IA3Config(), {"fc2"}),
        (peft.LNTuningConfig(), {"norm1", "norm2", "position_norm"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, peft.PeftConfig) else "",
)
@pytest.mark.parametrize("variant", ["sonata", "sonata_decoder"])
def test_default_targets_leave_pooling_stem_and_heads_alone(variant, config, expected):
    backbone = make_backbone(variant)
    num_blocks = sum(backbone.config.depths) + sum(backbone.config.decoder_depths)
    names = get_peft_model(backbone, config).base_model.targeted_module_names
    assert {name.rpartition(".")[2] for name in names} == expected
    assert len(names) == num_blocks * len(expected)
    assert all(".layers." in name for name in names)


def test_lora_on_the_published_target_has_the_published_size():
    backbone = make_backbone()
    model = get_peft_model(backbone, peft.LoraConfig(r=8, target_modules=["qkv"]))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == sum(32 * size * depth for size, depth in zip((12, 24, 36), (2, 1, 2), strict=True))


@pytest.mark.parametrize(
    "config_class",
    [
        pp.GeometryAdapterConfig,
        pp.PointPriorPromptConfig,
        pp.PointPeftConfig,
        pp.DAPTConfig,
        pp.IDPTConfig,
        pp.PPTConfig,
        pp.STAGConfig,
        pp.PointGSTConfig,
        pp.PointLoRAConfig,
        pp.GAPromptConfig,
    ],
)
def test_types_for_objects_are_refused(config_class):
    backbone = make_backbone()
    before = logits(backbone)
    with pytest.raises(ValueError, match="groups of points.*VOXEL_ADAPTER, PATCH_PROMPT"):
        get_peft_model(backbone, config_class())
    assert torch.equal(logits(backbone), before)


def test_types_for_scenes_are_refused_on_objects():
    config = pp.PointMAEConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, patch_hidden_sizes=(4, 8, 8)
    )
    for config_class in (pp.VoxelAdapterConfig, pp.PatchPromptConfig):
        with pytest.raises(ValueError, match="voxels of scenes.*PointMAEForClassification"):
            get_peft_model(pp.PointMAEForClassification(config), config_class())


@pytest.mark.parametrize(
    ("config_class", "fields"),
    [
        (pp.VoxelAdapterConfig, {"bottleneck_size": 0}),
        (pp.VoxelAdapterConfig, {"scale": 0.0}),
        (pp.VoxelAdapterConfig, {"dropout": 1.0}),
        (pp.PatchPromptConfig, {"num_prompt_tokens": 0}),
    ],
)
def test_bad_configurations(config_class, fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        config_class(**fields)


def test_another_backbone_is_refused(ours, tmp_path):
    get_peft_model(make_backbone(), ours()).save_pretrained(tmp_path)
    other = make_backbone(orders=("hilbert", "z"))
    with pytest.raises(ValueError, match="orders"):
        PeftModel.from_pretrained(other, tmp_path)


def test_an_adapter_finds_its_backbone_and_brings_a_new_decoder(tmp_path):
    make_backbone().save_pretrained(tmp_path / "backbone")
    options = {"read_out": "decoder", "num_labels": 3, "ignore_mismatched_sizes": True}
    load = pp.AutoModelForPointCloudSemanticSegmentation.from_pretrained
    backbone = load(tmp_path / "backbone", **options)
    backbone.name_or_path = str(tmp_path / "backbone")
    model = get_peft_model(backbone, pp.VoxelAdapterConfig(init_weights=False))
    assert set(model.peft_config["default"].modules_to_save) == {"semantic_head", "decoder"}
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = pp.AutoPointPeftModel.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(loaded), expected)
