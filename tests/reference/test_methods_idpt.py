"""IDPT against values of the published code (ICCV 2023, arXiv 2304.07221), from its own files."""

import pytest
import torch

from point_peft_hf.tuners.idpt.generator import nearest_tokens
from point_peft_hf.tuners.idpt.published import read_published


@pytest.fixture(scope="module")
def method(published_method):
    return published_method("idpt")


@pytest.fixture(scope="module")
def parts(published_method):
    return published_method("idpt_seg", "idpt")


def test_files_are_read_completely(method, parts):
    assert not method.report.new
    assert not parts.report.new
    assert not method.report.ignored
    # That of the network on the category, and those of the norms that are never called.
    assert len(parts.report.ignored) == 1 + 3 * 5
    assert len(parts.report.unused) == 3 * 5
    for each in (method, parts):
        assert {*each.report.adapter, *each.report.loaded, *each.report.ignored} == set(each.tensors)
    config = method.published.config
    assert (config.prompt_layers, config.num_neighbors, config.train_prompt_position) == ([2], 5, False)
    config = parts.published.config
    assert (config.prompt_layers, config.generator, config.keep_prompts) == ([3, 7, 11], "light", False)


@torch.no_grad()
def test_logits(method):
    model, values = method.model(), method.values
    encoded = model.base_model.model.point_mae.encode(values["points"])
    assert (model(values["points"]).logits - values["eval.logits"]).abs().max() < 1e-5
    assert (encoded.pooled - values["eval.pooled"]).abs().max() < 1e-5
    hidden = encoded.normed.features
    assert (hidden - values["eval.hidden"]).abs().max() < 1e-5 * values["eval.hidden"].abs().max()


@torch.no_grad()
def test_generator(method):
    layer = method.model().base_model.model.point_mae.encoder.layers[2].entry_slot
    values, features = method.values, method.values["eval.block1.out"][:, 1:]
    assert (layer.generate("default", features).amax(dim=1) - values["eval.gen.prompt"].flatten(1)).abs().max() < 1e-5
    for number in (1, 2, 3):
        indices, expected = nearest_tokens(features, 5), values[f"eval.gen.knn{number}"]
        assert torch.equal(indices.sort().values, expected.sort().values)
        features = layer.part(f"edge{number}", "default").on_edges(features, 5)
        assert (features - values[f"eval.gen.edge{number}"]).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["all", "promptonly", "promptcls", "pointcls"])
@torch.no_grad()
def test_read_outs(method, name):
    expected, head = method.values[f"eval.pooled.{name}"], "cls_head_finetune.0.weight"
    tensors = {**method.tensors, head: method.tensors[head][:, : expected.shape[1]]}
    config = read_published(tensors, {**method.settings, "cls_type": name}, "point_mae").config
    model = method.model()
    vars(model.peft_config["default"]).update(
        class_token=config.class_token, prompt_token=config.prompt_token, patch_pooling=config.patch_pooling
    )
    pooled = model.base_model.model.point_mae.encode(method.values["points"]).pooled
    assert (pooled - expected).abs().max() < 1e-5


@pytest.mark.parametrize("mode", ["frozen_bn", "train"])
def test_training_step(method, check_training, monkeypatch, mode):
    # The published code computes the gradient of the position, but does not train it.
    values = {name: value for name, value in method.values.items() if name != f"{mode}.grad.prompt_pos"}
    monkeypatch.setattr(method, "values", values)
    check_training(method, mode)


def test_gradient_of_the_position(method):
    model, values = method.model(torch.float64).train(), method.values
    position = model.base_model.model.point_mae.encoder.token_slot.part("prompt_position", "default").weight
    position.requires_grad_()
    model(values["points"].double(), labels=values["labels"]).loss.backward()
    expected = values["frozen_bn.grad.prompt_pos"].flatten()
    assert (position.grad - expected).abs().max() < 1e-6 * expected.abs().max()


@torch.no_grad()
def test_part_segmentation(parts):
    model, values = parts.model(), parts.values
    output = model(values["points"], labels=values["labels"], category_ids=values["category"])
    assert (output.logits.log_softmax(dim=-1) - values["eval.log_probabilities"]).abs().max() < 1e-5
    assert (output.loss - values["eval.loss"]).abs() < 1e-5


@pytest.mark.parametrize("mode", ["frozen_bn", "train"])
def test_training_step_of_a_part_segmentation(parts, check_part_training, mode):
    check_part_training(parts, mode)


def test_what_the_head_reads(method):
    head = "cls_head_finetune.0.weight"
    with pytest.raises(ValueError, match="'cls_type' must be one of 'all', .*, got 'some'"):
        read_published(method.tensors, {"cls_type": "some"}, "point_mae")
    with pytest.raises(ValueError, match="reads 3 features of the width of a token, which does not fit cls_type='pr"):
        read_published(method.tensors, {"cls_type": "promptonly"}, "point_mae")
    two = {**method.tensors, head: method.tensors[head][:, :64]}
    with pytest.raises(ValueError, match="reads 2 features .* 'cls_type' can be 'promptcls' or 'pointcls'. Give"):
        read_published(two, {}, "point_mae")
    assert read_published({**two, head: two[head][:, :32]}, {}, "point_mae").config.prompt_layers == [3]


def test_damaged_files(method):
    name = "blocks.cls.conv2.1.weight"
    assert name in method.second_names
    with pytest.raises(ValueError, match=f"'blocks.cls.bn2.weight' and '{name}' are the same tensor .*, but differ"):
        read_published({**method.tensors, name: torch.zeros(32)}, {}, "point_mae")
    plain = {name: tensor for name, tensor in method.tensors.items() if "blocks.cls" not in name}
    with pytest.raises(ValueError, match="A file of IDPT has 'blocks.cls.conv5.0.weight'"):
        read_published(plain, {}, "point_mae")
