"""DAPT against values of the published code (CVPR 2024, arXiv 2403.01439), from its own file."""

import pytest
import torch

from point_peft_hf.tuners.dapt.published import read_published

HEAD = "cls_head_finetune.0.weight"


@pytest.fixture(scope="module")
def method(published_method):
    return published_method("dapt")


def test_file_is_read_completely(method):
    assert not method.report.new
    assert not method.report.ignored
    assert set(method.report.adapter) | set(method.report.loaded) == set(method.tensors)
    config = method.published.config
    assert (config.bottleneck_size, config.prompt_pooling, config.patch_pooling) == (6, "mean", "max")
    assert config.position == "once"


@torch.no_grad()
def test_logits(method):
    model, values = method.model(), method.values
    encoded = model.base_model.model.point_mae.encode(values["points"])
    assert (model(values["points"]).logits - values["eval.logits"]).abs().max() < 1e-5
    assert (encoded.pooled - values["eval.pooled"]).abs().max() < 1e-5
    # Published: class token, prompts from the newest to the oldest, patch tokens.
    hidden = encoded.normed.features
    reordered = torch.cat([hidden[:, :1], hidden[:, 1:5].flip(1), hidden[:, 5:]], dim=1)
    assert (reordered - values["eval.hidden"]).abs().max() < 1e-5 * values["eval.hidden"].abs().max()


@torch.no_grad()
def test_blocks(method):
    model, values = method.model(), method.values
    shown = {}
    layers = model.base_model.model.point_mae.encoder.layers
    for index, layer in enumerate(layers):
        adapter = layer.ffn_slot.part("dynamic_adapter", "default")
        adapter.register_forward_hook(lambda _, inputs, added, index=index: shown.update({index: (inputs[0], added)}))
    model(values["points"])
    for index in range(len(layers)):
        added, expected = shown[index][1], values[f"eval.block{index}.adapter"]
        # The class token, and all that is behind the prompts.
        for rows in (slice(0, 1), slice(index + 1, None)):
            assert (added[:, rows] - expected[:, rows]).abs().max() < 1e-5
        layer = layers[index].output_slot
        prompt = layer.part("internal_prompt", "default")(torch.nn.functional.gelu(added).mean(dim=1, keepdim=True))
        assert (prompt - values[f"eval.block{index}.internal_prompt"].view_as(prompt)).abs().max() < 1e-5


@pytest.mark.parametrize("mode", ["frozen_bn", "train"])
def test_training_step(method, check_training, mode):
    # What is added to all keys alike leaves a softmax as it is. In the file these are a part of a larger tensor.
    check_training(method, mode, is_zero=lambda name: name.endswith("k_proj_slot.dapt_scale_shift.shift"))


def test_what_the_head_reads(method):
    read = {**method.settings, "prompt_token": "None"}
    with pytest.raises(ValueError, match=r"head of the file reads 3 features .* 'prompt_token': None.* are 2. Give"):
        read_published(method.tensors, read, "point_mae")
    narrow = {**method.tensors, HEAD: method.tensors[HEAD][:, :64]}
    assert read_published(narrow, read, "point_mae").config.prompt_pooling is None
    # Without options it is one of ScanObjectNN's, unless it has 40 classes.
    assert read_published(method.tensors, {}, "point_mae").config.prompt_pooling == "mean"
    narrow["cls_head_finetune.8.weight"] = torch.zeros(40, 32)
    assert read_published(narrow, {}, "point_mae").config.prompt_pooling is None


def test_files_of_other_methods(method):
    plain = {name: tensor for name, tensor in method.tensors.items() if "Adapter_MLP" not in name}
    with pytest.raises(ValueError, match="A file of DAPT has 'blocks.blocks.0.Adapter_MLP.down_proj.weight'"):
        read_published(plain, {}, "point_mae")
    with pytest.raises(ValueError, match=r"must read one or more tokens of width 32"):
        read_published({**method.tensors, HEAD: torch.zeros(4, 50)}, {}, "point_mae")
    name = "blocks.blocks.0.attn.tfts_gamma_1"
    with pytest.raises(ValueError, match=rf"'{name}' should hold 3 parts, .* shape \(32,\)"):
        read_published({**method.tensors, name: torch.zeros(32)}, {}, "point_mae")
