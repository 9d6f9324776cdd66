"""One block with the geometry adapter against the published code: forward, batch statistics, and gradients."""

import numpy as np
import pytest
import torch
from peft import get_peft_model

from point_peft_hf import PointMAEConfig, PointMAEModel, PointPeftConfig
from point_peft_hf.tokens import Cloud, start_tokens

# Names of the published parameters, and of the adapter's.
ADAPTER_PARAMETERS = {
    "blocks.6.adapter.ln1.weight": "ffn_slot.point_peft_ffn_bottleneck.default.down_weight",
    "blocks.6.adapter.ln1.bias": "ffn_slot.point_peft_ffn_bottleneck.default.down_bias",
    "blocks.6.adapter.ln2.weight": "ffn_slot.point_peft_ffn_bottleneck.default.up_weight",
    "blocks.6.adapter.ln2.bias": "ffn_slot.point_peft_ffn_bottleneck.default.up_bias",
    "blocks.6.adapter1.ln1.weight": "output_slot.point_peft_output_bottleneck.default.down_weight",
    "blocks.6.adapter1.ln1.bias": "output_slot.point_peft_output_bottleneck.default.down_bias",
    "blocks.6.adapter1.ln2.weight": "output_slot.point_peft_output_bottleneck.default.up_weight",
    "blocks.6.adapter1.ln2.bias": "output_slot.point_peft_output_bottleneck.default.up_bias",
    "blocks.6.out_transform.0.weight": "output_slot.point_peft_pooled_bn.default.weight",
    "blocks.6.out_transform.0.bias": "output_slot.point_peft_pooled_bn.default.bias",
    "attn1.qkv.weight": "token_slot.point_peft_local_attention.default.qkv_weight",
    "attn1.proj.weight": "token_slot.point_peft_local_attention.default.proj_weight",
    "attn1.proj.bias": "token_slot.point_peft_local_attention.default.proj_bias",
    "norm3.weight": "token_slot.point_peft_local_attention.default.norm_weight",
    "norm3.bias": "token_slot.point_peft_local_attention.default.norm_bias",
}
TUNED_BIASES = {
    "blocks.6.norm1.bias": "norm1_slot",
    "blocks.6.attn.proj.bias": "attention.out_proj_slot",
    "blocks.6.norm2.bias": "norm2_slot",
    "blocks.6.mlp.fc1.bias": "mlp.fc1_slot",
    "blocks.6.mlp.fc2.bias": "mlp.fc2_slot",
}
BATCH_NORM = "output_slot.point_peft_pooled_bn.default"


@pytest.fixture(scope="module")
def values(reference_dir):
    with np.load(reference_dir / "geometry_adapter_block.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture
def model(reference_dir):
    """A backbone of one block with the reference's weights, and an adapter without dropout."""
    backbone = PointMAEModel(
        PointMAEConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=6, num_groups=16, group_size=8)
    )
    config = PointPeftConfig(use_prompts=False, init_weights="published", dropout=0.0, local_drop_path=0.0)
    get_peft_model(backbone, config)
    weights = torch.load(reference_dir / "geometry_adapter_block.pth", weights_only=True)
    layer = backbone.encoder.layers[0]
    query, key, value = weights["blocks.6.attn.qkv.weight"].chunk(3)
    block = {"attention.q_proj.weight": query, "attention.k_proj.weight": key, "attention.v_proj.weight": value}
    block |= {f"attention.out_proj.{name}": weights[f"blocks.6.attn.proj.{name}"] for name in ("weight", "bias")}
    for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
        block |= {f"{part}.{name}": weights[f"blocks.6.{part}.{name}"] for name in ("weight", "bias")}
    adapter = {target: weights[source] for source, target in ADAPTER_PARAMETERS.items()}
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        adapter[f"{BATCH_NORM}.{name}"] = weights[f"blocks.6.out_transform.0.{name}"]
    layer.load_state_dict(block | {k: v for k, v in adapter.items() if not k.startswith("token_slot")}, strict=False)
    local = {k.removeprefix("token_slot."): v for k, v in adapter.items() if k.startswith("token_slot")}
    backbone.encoder.token_slot.load_state_dict(local, strict=False)
    return backbone


def run(model, values, x):
    center = values["center"]
    return model.encoder(start_tokens(x, center, Cloud(center, center), num_class=1), model)[0].features


def parameter_of(model, name):
    root = model.encoder if name.startswith("token_slot") else model.encoder.layers[0]
    return root.get_parameter(name)


def test_forward_with_running_statistics(model, values):
    with torch.no_grad():
        out = run(model.eval(), values, values["x"])
    assert (out - values["eval.out"]).abs().max() < 1e-5


def test_neighborhoods(model, values):
    center = values["center"]
    tokens = start_tokens(values["x"], center, Cloud(center, center), num_class=1)
    neighborhoods = model.encoder.layers[0].output_slot._neighborhoods("default", tokens)
    assert torch.equal(neighborhoods.center_indices, values["local_center_idx"])
    assert torch.equal(neighborhoods.neighbor_indices.sort().values, values["local_knn_idx"].sort().values)
    assert (neighborhoods.weights[:, 1:] - values["propagation_weights"]).abs().max() < 1e-6


def test_training_step(model, values):
    model.train()
    for module in model.modules():
        if type(module).__name__ == "DropPath":
            module.rate = 0.0
    x = values["x"].clone().requires_grad_()
    out = run(model, values, x)
    assert (out - values["train.out"]).abs().max() < 1e-5
    (out * values["R"]).sum().backward()

    def assert_close(gradient, name):
        expected = values[f"train.grad{name}"]
        assert (gradient - expected).abs().max() < 1e-5 * expected.abs().max(), name

    assert_close(x.grad, "_x")
    for source, target in ADAPTER_PARAMETERS.items():
        # Batch statistics remove a constant shift, so this gradient is rounding noise.
        if source != "attn1.proj.bias":
            assert_close(parameter_of(model, target).grad, f".{source}")
    for source, slot in TUNED_BIASES.items():
        assert_close(parameter_of(model, f"{slot}.point_peft_bias.default.weight").grad, f".{source}")

    batch_norm = model.encoder.layers[0].get_submodule(BATCH_NORM)
    assert (batch_norm.running_mean - values["train.bn_after.running_mean"]).abs().max() < 1e-5
    assert (batch_norm.running_var - values["train.bn_after.running_var"]).abs().max() < 1e-5
    assert batch_norm.num_batches_tracked == values["train.bn_after.num_batches_tracked"]
