"""Files in the layouts of the Point Transformer V3 family, made of tiny models, and what is refused."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from point_peft_hf import (
    AutoModelForPointCloudSemanticSegmentation,
    PointTransformerV3ForClassification,
    PointTransformerV3ForSemanticSegmentation,
    PointTransformerV3Model,
)
from point_peft_hf.models.convert import convert_checkpoint, load_checkpoint
from point_peft_hf.models.convert_ptv3_keys import _CLASS_HEAD, _LEAVES
from point_peft_hf.ops import rope_frequencies

_SPEC = importlib.util.spec_from_file_location("tiny_scenes", Path(__file__).with_name("scenes.py"))
scenes = sys.modules["tiny_scenes"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(scenes)

SOURCES = {target: source for source, target in _LEAVES.items()}
# Heads are given: 12 and 36 are no multiples of 16.
GIVEN = {"num_attention_heads": [1, 2, 3], "patch_sizes": [16] * 3}
DECODER = {"decoder_num_attention_heads": [2, 4]}
OPTIONS = {
    "sonata": {"config": GIVEN},
    "utonia": {"config": {"patch_sizes": [16] * 3}},
    "sonata_decoder": {"config": GIVEN | DECODER},
    "ptv3": {"config": GIVEN | DECODER, "variant": "ptv3-repaired"},
    "ptv3_legacy": {"config": GIVEN | DECODER, "variant": "ptv3"},
    "ptv3_table": {"config": GIVEN | DECODER, "variant": "ptv3-repaired"},
}
ARGUMENTS = {
    "in_channels": 9,
    "order": ("z", "z-trans", "hilbert", "hilbert-trans"),
    "stride": (2, 2),
    "enc_depths": (2, 1, 2),
    "enc_channels": (12, 24, 36),
    "enc_num_head": (1, 2, 3),
    "enc_patch_size": (16, 16, 16),
    "enc_mode": True,
    "pre_norm": True,
    "qk_scale": None,
}


def published_name(name):
    """The research name of a tensor of a model here."""
    name = name.removeprefix("ptv3.")
    name = re.sub(r"^semantic_head\.linear\.", "seg_head.", name)
    for number, part in _CLASS_HEAD.items():
        name = name.replace(f"classifier.{part}.", f"cls_head.{number}.")
    name = name.replace("stem.", "embedding.stem.")
    name = re.sub(r"^decoder\.unpoolings\.(\d+)\.linear\.", r"dec.dec\1.up.proj.0.", name)
    name = re.sub(r"^decoder\.unpoolings\.(\d+)\.norm\.", r"dec.dec\1.up.proj.1.", name)
    name = re.sub(r"^decoder\.unpoolings\.(\d+)\.skip_linear\.", r"dec.dec\1.up.proj_skip.0.", name)
    name = re.sub(r"^decoder\.unpoolings\.(\d+)\.skip_norm\.", r"dec.dec\1.up.proj_skip.1.", name)
    name = re.sub(r"^stages\.(\d+)\.pooling\.linear\.", r"enc.enc\1.down.proj.", name)
    name = re.sub(r"^stages\.(\d+)\.pooling\.norm\.", r"enc.enc\1.down.norm.0.", name)
    name = name.replace(".attention.relative_positions.table", ".attn.rpe.rpe_table")
    name = re.sub(r"^decoder\.stages\.(\d+)\.layers\.(\d+)\.", r"dec.dec\1.block\2.", name)
    name = re.sub(r"^stages\.(\d+)\.layers\.(\d+)\.", r"enc.enc\1.block\2.", name)
    match = re.match(r"((?:enc|dec)\.\w+\.block\d+\.)(.*)\.(\w+)$", name)
    return f"{match[1]}{SOURCES[match[2]]}.{match[3]}" if match and match[2] in SOURCES else name


def published(model):
    """The tensors of a model as its authors' code would save them."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensors[published_name(name)] = tensor.permute(4, 0, 1, 2, 3).contiguous() if tensor.ndim == 5 else tensor
    if model.config.rope_base is not None:
        for name in [name for name in tensors if name.endswith("attn.qkv.weight")]:
            tensors[name.replace("qkv.weight", "rope.inv_freq")] = rope_frequencies(model.config.rope_base, 12)
    return tensors


def make_model(variant="sonata", model_class=PointTransformerV3ForSemanticSegmentation, **fields):
    torch.manual_seed(0)
    return scenes.shake(model_class(scenes.tiny_config(variant, **fields)))


def save(tensors, path, **more):
    torch.save({"state_dict": tensors, **more}, path)
    return path


@torch.no_grad()
def logits(model):
    return model.eval()(**scenes.make_voxels()).logits


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("variant", OPTIONS)
def test_a_training_run(variant, prefix, tmp_path):
    model = make_model(variant)
    heads = ("seg_head.", "cls_head.")
    tensors = {
        f"{prefix}{'' if name.startswith(heads) else 'backbone.'}{name}": tensor
        for name, tensor in published(model).items()
    }
    report = convert_checkpoint(save(tensors, tmp_path / "run.pth"), tmp_path / "out", "ptv3", **OPTIONS[variant])
    assert report.architecture == "PointTransformerV3ForSemanticSegmentation"
    assert not report.new
    assert all("inv_freq" in name for name in report.ignored)
    loaded = AutoModelForPointCloudSemanticSegmentation.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config.weights_license == ("mit" if "ptv3" in variant else "cc-by-nc-4.0")


def test_an_encoder_with_its_arguments_and_a_head_of_its_own(tmp_path):
    model = make_model()
    tensors = published(model)
    head = {name: tensors.pop(name) for name in list(tensors) if name.startswith("seg_head.")}
    path = save({**tensors, "embedding.mask_token": torch.zeros(1, 12)}, tmp_path / "enc.pth", config=ARGUMENTS)
    loaded = PointTransformerV3ForSemanticSegmentation.from_pretrained(path, num_labels=5)
    assert list(loaded.config.num_attention_heads) == [1, 2, 3]
    report = load_checkpoint(loaded, save(head, tmp_path / "head.pth"))
    assert len(report.loaded) == 2
    assert torch.equal(logits(loaded), logits(model))
    # The same as files of the Hub.
    (tmp_path / "hub").mkdir()
    save_file(tensors, tmp_path / "hub" / "model.safetensors")
    (tmp_path / "hub" / "config.json").write_text(__import__("json").dumps(ARGUMENTS))
    encoder = PointTransformerV3Model.from_pretrained(tmp_path / "hub")
    voxels = scenes.make_voxels()
    with torch.no_grad():
        assert torch.equal(encoder(**voxels).last_hidden_state, model.ptv3(**voxels).last_hidden_state)


def test_the_student_of_a_pre_training(tmp_path):
    tensors = published(make_model(model_class=PointTransformerV3Model))
    both = {f"module.student.backbone.{name}": tensor for name, tensor in tensors.items()}
    both |= {f"module.teacher.backbone.{name}": tensor + 1 for name, tensor in tensors.items()}
    both |= {"module.student.mask_head.0.weight": torch.ones(2, 2)}
    report = convert_checkpoint(save(both, tmp_path / "run.pth"), tmp_path / "out", "ptv3", GIVEN)
    assert set(report.ignored) == {name for name in both if "student.backbone" not in name}
    other = {f"one.{name}": tensor for name, tensor in tensors.items()} | tensors
    with pytest.raises(ValueError, match="several models.*'embedding.stem.' and 'one.embedding.stem.'"):
        convert_checkpoint(save(other, tmp_path / "two.pth"), tmp_path / "out", "ptv3", GIVEN)


def test_a_classifier(tmp_path):
    model = make_model(model_class=PointTransformerV3ForClassification)
    path = save(published(model), tmp_path / "run.pth", config=ARGUMENTS)
    assert convert_checkpoint(path, tmp_path / "out", "ptv3").architecture == type(model).__name__
    loaded = PointTransformerV3ForClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(loaded), logits(model))


def test_scales_and_other_strides_are_read(tmp_path):
    model = make_model("scaled", orders=scenes.tiny_config().orders, strides=(2, 4))
    arguments = {**ARGUMENTS, "layer_scale": 0.1, "stride": (2, 4), "attn_drop": 0.1, "proj_drop": 0.1}
    loaded = AutoModelForPointCloudSemanticSegmentation.from_pretrained(
        save(published(model), tmp_path / "run.pth", config=arguments)
    )
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config.hidden_dropout == 0.1


# -- What is refused --------------------------------------------------------------------------------------------------


def change(tensors, name, value):
    return {**tensors, name: value}


BLOCK = "enc.enc0.block0."
REFUSED = {
    "more inside": (
        lambda t: change(t, f"{BLOCK}adapter.weight", torch.ones(2)),
        "adapter.weight.*inside of the model",
    ),
    "LoRA": (lambda t: change(t, f"{BLOCK}attn.qkv.lora_A.weight", torch.ones(2)), "LoRA"),
    "not finite": (lambda t: change(t, f"{BLOCK}norm1.0.bias", torch.full((12,), torch.nan)), "not finite"),
    "a block missing": (lambda t: {n: v for n, v in t.items() if "enc1.block0" not in n}, "enc.enc1.block0"),
    "a tensor missing": (lambda t: {n: v for n, v in t.items() if n != f"{BLOCK}mlp.0.fc2.bias"}, "missing.*fc2.bias"),
    "another shape": (lambda t: change(t, f"{BLOCK}attn.proj.weight", torch.ones(9, 12)), "shape"),
    "no encoder": (lambda t: {n: v for n, v in t.items() if "head" in n}, "load_checkpoint"),
    "another model": (lambda t: {"encoder.first_conv.0.weight": torch.ones(4, 3, 1)}, "Point-MAE"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path):
    modify, message = REFUSED[case]
    path = save(modify(published(make_model())), tmp_path / "run.pth")
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(path, tmp_path / "out", "ptv3", GIVEN)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("variant", "options", "message"),
    [
        # What no tensor says is not guessed: both readings are named.
        ("ptv3", {"config": GIVEN | DECODER}, "variant='ptv3'.*variant='ptv3-repaired'"),
        ("sonata", {}, "attention heads.*num_attention_heads"),
        ("sonata", {"config": GIVEN, "variant": "utonia"}, "no `attn.rope.inv_freq`"),
        ("sonata", {"config": GIVEN, "variant": "ptv3"}, "sparse stem.*linear.*sonata"),
        ("utonia", {"variant": "sonata"}, "rope_base"),
        ("sonata", {"config": GIVEN, "variant": "m2"}, "must be one of"),
        ("sonata", {"config": GIVEN | {"hidden_sizes": [16, 24, 36]}}, "hidden_sizes.*contradicts its tensors"),
        ("sonata", {"config": GIVEN, "method": "stag"}, "No published method"),
    ],
)
def test_what_is_to_be_said(variant, options, message, tmp_path):
    path = save(published(make_model(variant)), tmp_path / "run.pth")
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(path, tmp_path / "out", "ptv3", **options)


@pytest.mark.parametrize(
    ("argument", "value"), [("pre_norm", False), ("qk_scale", 0.5), ("enc_depths", (2, 2, 2)), ("enable_rpe", True)]
)
def test_arguments_that_contradict(argument, value, tmp_path):
    path = save(published(make_model()), tmp_path / "run.pth", config={**ARGUMENTS, argument: value})
    with pytest.raises(ValueError, match=argument.removeprefix("enc_") if argument != "enable_rpe" else "relative"):
        convert_checkpoint(path, tmp_path / "out", "ptv3")


def test_rotations_do_not_load_into_a_model_without(tmp_path):
    path = save(published(make_model("utonia")), tmp_path / "run.pth")
    with pytest.raises(ValueError, match="rotations of attention.*rope_base=None"):
        load_checkpoint(make_model("sonata"), path)


def test_a_variant_of_another_model_type(tmp_path):
    with pytest.raises(ValueError, match="`variant`='ptv3' is for"):
        convert_checkpoint(
            save({"encoder.first_conv.0.weight": torch.ones(4, 3, 1)}, tmp_path / "run.pth"),
            tmp_path / "out",
            "point_mae",
            variant="ptv3",
        )
