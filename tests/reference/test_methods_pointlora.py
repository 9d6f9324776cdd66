"""PointLoRA against values of the published code (CVPR 2025, arXiv 2504.16023), from its own file."""

import pytest
import torch

from point_peft_hf.tuners.pointlora.layer import negative_entropy
from point_peft_hf.tuners.pointlora.published import read_published


@pytest.fixture(scope="module")
def method(published_method):
    return published_method("pointlora")


def test_file_is_read_completely(method):
    assert not method.report.new
    factors = {f"blocks.blocks.{block}.attn.{layer}.weight" for block in range(4) for layer in ("qkv", "proj")}
    assert set(method.report.ignored) == set(method.report.unused) == factors
    assert set(method.report.not_asked_for) == {"num_points", "batch_size", "dropout"}
    assert set(method.report.adapter) | set(method.report.loaded) | factors == set(method.tensors)
    config = method.model().peft_config["default"]
    assert (config.r, config.bottleneck_size, config.scales) == (8, 32, [[48, 8, 32], [20, 16, 8]])
    assert config.mask_loss_weights == [0.004, 0.001]


@torch.no_grad()
def test_logits(method):
    model, values = method.model(), method.values
    encoder = model.base_model.model.point_mae
    encoded = encoder.encode(values["points"])
    assert (model(values["points"]).logits - values["eval.logits"]).abs().max() < 1e-5
    assert (encoded.pooled - values["eval.pooled"]).abs().max() < 1e-5 * values["eval.pooled"].abs().max()
    # Published: class token, patch tokens, selected tokens.
    hidden, expected = encoded.normed.features, values["eval.hidden"]
    reordered = torch.cat([hidden[:, :1], hidden[:, 41:], hidden[:, 1:41]], dim=1)
    assert (reordered - expected).abs().max() < 1e-5 * expected.abs().max()
    scorer = encoder.encoder.token_slot.part("scorer", "default")
    scores = [scorer(encoder.embed(values["points"], *scale[:2])[0]) for scale in method.settings["scales"]]
    for number, score in enumerate(scores, 1):
        torch.testing.assert_close(score, values[f"eval.scale{number}.score"], rtol=0, atol=1e-6)
    loss = negative_entropy(scores[0]) + 0.25 * negative_entropy(scores[1])
    torch.testing.assert_close(loss, values["eval.mask_loss"], rtol=0, atol=1e-6)


def test_the_honest_form_predicts_the_same(method):
    model, values = method.model(), method.values
    config = model.peft_config["default"]
    config.train_scores_by_task = config.confident_scores = True
    assert (model(values["points"]).logits - values["eval.logits"]).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients(method, check_gradients, dtype):
    model, values = method.model(dtype).train(), method.values
    output = model(values["points"].to(dtype), labels=values["labels"])
    output.loss.backward()
    assert (output.logits - values["frozen_bn.logits"]).abs().max() < 1e-5
    assert (output.loss - values["frozen_bn.loss"]).abs() < 1e-5
    zero = method.notes["notes"]["frozen_bn.grad_zero_in_exact_arithmetic"]
    left_out = method.named({name: torch.zeros_like(method.tensors[name]) for name in zero})
    expected = method.under("frozen_bn.grad.")
    check_gradients(model, expected, left_out, 2e-5)
    expected = method.under("frozen_bn.buffer_after.")
    buffers = {name.replace(".modules_to_save.default", ""): buffer for name, buffer in model.named_buffers()}
    assert len(expected) == 6
    for name, buffer in expected.items():
        torch.testing.assert_close(buffers[name], buffer.to(dtype), rtol=0, atol=1e-6)


def test_factors_of_shared_mlps(method):
    name = "blocks.blocks.1.attn.proj.weight"
    with pytest.raises(ValueError, match=f"'{name}', the factor of a shared MLP, is 2. Published training leaves it"):
        read_published(method.tensors | {name: torch.tensor([2.0])}, method.settings, "point_mae")
    with pytest.raises(ValueError, match=r"has shape \(32, 32\).*the weight of the layer is called `linear.weight`"):
        read_published(method.tensors | {name: torch.ones(32, 32)}, method.settings, "point_mae")
    rest = {key: tensor for key, tensor in method.tensors.items() if "lora_A" not in key}
    with pytest.raises(ValueError, match=r"has 'blocks.blocks.0.attn.qkv.lora_A'; this one does not"):
        read_published(rest, method.settings, "point_mae")
