"""PPT against values of the published code (arXiv 2408.11567), from its own files."""

import pytest
import torch

from point_peft_hf.tuners.ppt.published import read_published

HEAD = "cls_head_finetune.0.weight"


@pytest.fixture(scope="module")
def method(published_method):
    return published_method("ppt")


@pytest.fixture(scope="module")
def parts(published_method):
    return published_method("ppt_seg", "ppt")


def test_files_are_read_completely(method, parts):
    assert not method.report.new
    assert not parts.report.new
    assert not method.report.ignored
    assert parts.report.ignored == ["label_conv.1.num_batches_tracked"]
    config = method.published.config
    assert (config.num_prompt_groups, config.prompt_group_size, config.bottleneck_size) == (12, 10, 256)
    assert not config.shifted_rows
    assert parts.published.config.shifted_rows
    assert parts.published.config.bottleneck_size == 128


@torch.no_grad()
def test_logits(method):
    model, values = method.model(), method.values
    encoder = model.base_model.model.point_mae
    encoded = encoder.encode(values["points"])
    assert (model(values["points"]).logits - values["eval.logits"]).abs().max() < 1e-5
    assert (encoded.pooled - values["eval.pooled"]).abs().max() < 1e-5
    # Published: class token, patch tokens, prompts.
    hidden, expected = encoded.normed.features, values["eval.hidden"]
    reordered = torch.cat([hidden[:, :1], hidden[:, 13:], hidden[:, 1:13]], dim=1)
    assert (reordered - expected).abs().max() < 1e-5 * expected.abs().max()
    features, positions, centers = encoder.embed(values["points"], 12, 10)
    for found, name in ((features, "eval.prompt_tokens"), (positions, "eval.prompt_pos"), (centers, "prompt_center")):
        assert (found - values[name]).abs().max() < 1e-5


@pytest.mark.parametrize("mode", ["frozen_bn", "train"])
def test_training_step(method, check_training, mode):
    check_training(method, mode)


@torch.no_grad()
def test_part_segmentation(parts):
    model, values = parts.model(), parts.values
    output = model(values["points"], labels=values["labels"], category_ids=values["category"])
    assert (output.logits.log_softmax(dim=-1) - values["eval.log_probabilities"]).abs().max() < 1e-5
    assert (output.loss - values["eval.loss"]).abs() < 1e-5
    model.peft_config["default"].shifted_rows = False
    shifted = model(values["points"], category_ids=values["category"]).logits
    assert (shifted - output.logits).abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["frozen_bn", "train"])
def test_training_step_of_a_part_segmentation(parts, check_part_training, mode):
    check_part_training(parts, mode)


def test_files_of_other_methods(method):
    tensors = method.tensors
    with pytest.raises(ValueError, match="A file of PPT has 'blocks.prompt_mlp.0.weight'"):
        read_published({name: t for name, t in tensors.items() if "prompt_mlp" not in name}, {}, "point_mae")
    with pytest.raises(ValueError, match="reads 2 features of the width of a token, that of PPT 3"):
        read_published({**tensors, HEAD: tensors[HEAD][:, :64]}, {}, "point_mae")
