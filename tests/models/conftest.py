import sys

import pytest
import torch

from point_peft_hf import (
    PointBertConfig,
    PointBertForClassification,
    PointM2AEConfig,
    PointM2AEForClassification,
    PointMAEConfig,
    PointMAEForClassification,
)

SINGLE_STAGE = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_groups": 16,
    "group_size": 8,
    "patch_hidden_sizes": [8, 12, 16],
    "classifier_hidden_size": 20,
    "num_labels": 5,
}
TINY_CONFIGS = {
    "point_bert": (PointBertConfig, PointBertForClassification, {**SINGLE_STAGE, "patch_embedding_size": 18}),
    "point_m2ae": (
        PointM2AEConfig,
        PointM2AEForClassification,
        {
            "hidden_sizes": [12, 16, 24],
            "depths": [1, 2, 1],
            "num_attention_heads": 4,
            "num_groups": [32, 16, 8],
            "group_sizes": [8, 4, 4],
            "attention_radii": [0.5, 0.9, 1.5],
            "patch_hidden_sizes": [8, 12, 16],
            "classifier_hidden_size": 20,
            "num_labels": 5,
        },
    ),
    "point_mae": (PointMAEConfig, PointMAEForClassification, SINGLE_STAGE),
}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=sorted(TINY_CONFIGS))
def model_type(request):
    return request.param


@pytest.fixture
def make_classifier(model_type):
    """Build a tiny classifier of the model type, always with the same weights; keyword arguments change its config."""

    def make(**kwargs):
        config_class, model_class, fields = TINY_CONFIGS[model_type]
        torch.manual_seed(0)
        model = model_class(config_class(**{**fields, **kwargs}))
        # The default initialization leaves all tokens much alike.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        return model.eval()

    return make


@pytest.fixture
def points():
    return torch.randn(4, 96, 3, generator=torch.Generator().manual_seed(1)) * 0.5


@pytest.fixture
def published():
    """Functions that make random tensors under the names of published checkpoints, independently of the converter."""
    return sys.modules[__name__]


def patch_embedding(prefix, in_size, first, second, third, out_size):
    tensors = {}
    for conv, sizes in (("first_conv", (in_size, first, second)), ("second_conv", (2 * second, third, out_size))):
        tensors[f"{prefix}{conv}.0.weight"] = torch.randn(sizes[1], sizes[0], 1)
        tensors[f"{prefix}{conv}.0.bias"] = torch.randn(sizes[1])
        tensors |= batch_norm(f"{prefix}{conv}.1.", sizes[1])
        tensors[f"{prefix}{conv}.3.weight"] = torch.randn(sizes[2], sizes[1], 1)
        tensors[f"{prefix}{conv}.3.bias"] = torch.randn(sizes[2])
    return tensors


def batch_norm(prefix, size):
    return {
        f"{prefix}weight": torch.randn(size),
        f"{prefix}bias": torch.randn(size),
        f"{prefix}running_mean": torch.randn(size),
        f"{prefix}running_var": torch.rand(size) + 0.5,
        f"{prefix}num_batches_tracked": torch.tensor(7),
    }


def layer_norm(prefix, size):
    return {f"{prefix}weight": torch.randn(size), f"{prefix}bias": torch.randn(size)}


def linear(prefix, in_size, out_size):
    return {f"{prefix}weight": torch.randn(out_size, in_size), f"{prefix}bias": torch.randn(out_size)}


def blocks(prefix, width, depth, qkv_bias=False):
    tensors = {}
    for index in range(depth):
        block = f"{prefix}{index}."
        tensors |= layer_norm(f"{block}norm1.", width) | layer_norm(f"{block}norm2.", width)
        tensors[f"{block}attn.qkv.weight"] = torch.randn(3 * width, width)
        if qkv_bias:
            tensors[f"{block}attn.qkv.bias"] = torch.randn(3 * width)
        tensors |= linear(f"{block}attn.proj.", width, width)
        tensors |= linear(f"{block}mlp.fc1.", width, 4 * width) | linear(f"{block}mlp.fc2.", 4 * width, width)
    return tensors


def position_embedding(prefix, hidden, width):
    return linear(f"{prefix}0.", 3, hidden) | linear(f"{prefix}2.", hidden, width)


def deep_head(in_size, num_labels, hidden=20):
    return (
        linear("cls_head_finetune.0.", in_size, hidden)
        | batch_norm("cls_head_finetune.1.", hidden)
        | linear("cls_head_finetune.4.", hidden, hidden)
        | batch_norm("cls_head_finetune.5.", hidden)
        | linear("cls_head_finetune.8.", hidden, num_labels)
    )


def point_mae_encoder(width=24, depth=2, qkv_bias=False):
    return (
        patch_embedding("encoder.", 3, 8, 12, 16, width)
        | position_embedding("pos_embed.", 10, width)
        | blocks("blocks.blocks.", width, depth, qkv_bias)
        | layer_norm("norm.", width)
    )


def class_token(width=24):
    return {"cls_token": torch.randn(1, 1, width), "cls_pos": torch.randn(1, 1, width)}


def point_mae_classifier(width=24, depth=2, num_labels=5, qkv_bias=False):
    return point_mae_encoder(width, depth, qkv_bias) | class_token(width) | deep_head(2 * width, num_labels)


def point_mae_pretraining(width=24, depth=2, decoder_depth=1, group_size=4):
    encoder = point_mae_encoder(width, depth)
    return (
        {f"MAE_encoder.{name}": tensor for name, tensor in encoder.items()}
        | {"mask_token": torch.randn(1, 1, width)}
        | position_embedding("decoder_pos_embed.", 10, width)
        | blocks("MAE_decoder.blocks.", width, decoder_depth)
        | layer_norm("MAE_decoder.norm.", width)
        | {
            "increase_dim.0.weight": torch.randn(3 * group_size, width, 1),
            "increase_dim.0.bias": torch.randn(3 * group_size),
        }
    )


def point_bert_encoder(width=24, depth=2, embedding=18):
    return (
        patch_embedding("encoder.", 3, 8, 12, 16, embedding)
        | linear("reduce_dim.", embedding, width)
        | position_embedding("pos_embed.", 10, width)
        | blocks("blocks.blocks.", width, depth)
        | layer_norm("norm.", width)
        | class_token(width)
    )


def point_bert_pretraining():
    encoder = point_bert_encoder()
    encoder |= {"mask_token": torch.randn(1, 1, 24)} | linear("lm_head.", 24, 9) | linear("cls_head.0.", 24, 6)
    # The momentum encoder and the tokeniser have names like the encoder's, and other values.
    return (
        {
            f"transformer_k.{name}": torch.randn(tensor.shape) if tensor.ndim else tensor
            for name, tensor in encoder.items()
        }
        | {f"dvae.{name}": tensor + 1 for name, tensor in encoder.items() if name.startswith("encoder.")}
        | {f"transformer_q.{name}": tensor for name, tensor in encoder.items()}
        | {"queue": torch.randn(6, 8), "queue_ptr": torch.zeros(1)}
    )


def gpt_blocks(prefix, width, depth):
    tensors = {}
    for index in range(depth):
        block = f"{prefix}layers.{index}."
        tensors |= layer_norm(f"{block}ln_1.", width) | layer_norm(f"{block}ln_2.", width)
        tensors[f"{block}attn.in_proj_weight"] = torch.randn(3 * width, width)
        tensors[f"{block}attn.in_proj_bias"] = torch.randn(3 * width)
        tensors |= linear(f"{block}attn.out_proj.", width, width)
        tensors |= linear(f"{block}mlp.0.", width, 4 * width) | linear(f"{block}mlp.2.", 4 * width, width)
    return tensors | layer_norm(f"{prefix}ln_f.", width) | {f"{prefix}sos": torch.randn(width)}


def point_gpt_pretraining(width=24, depth=2, group_size=4, first=(8, 12), second=16):
    tensors = {"sos_pos": torch.randn(1, 1, width)} | layer_norm("norm.", width)
    sizes = [3, *first]
    for index, (in_size, size) in enumerate(zip(sizes, first, strict=False)):
        tensors |= {f"encoder.first_conv.{3 * index}.weight": torch.randn(size, in_size, 1)}
        tensors |= {f"encoder.first_conv.{3 * index}.bias": torch.randn(size)}
        if index < len(first) - 1:
            tensors |= batch_norm(f"encoder.first_conv.{3 * index + 1}.", size)
    for index, (in_size, size) in enumerate(((2 * first[-1], second), (second, width))):
        tensors |= {f"encoder.second_conv.{3 * index}.weight": torch.randn(size, in_size, 1)}
        tensors |= {f"encoder.second_conv.{3 * index}.bias": torch.randn(size)}
    tensors |= batch_norm("encoder.second_conv.1.", second)
    for prefix in ("blocks.", "generator_blocks."):
        tensors |= gpt_blocks(prefix, width, depth if prefix == "blocks." else 1)
        tensors |= {f"{prefix}increase_dim.0.weight": torch.randn(3 * group_size, width, 1)}
        tensors |= {f"{prefix}increase_dim.0.bias": torch.randn(3 * group_size)}
    return {f"GPT_Transformer.{name}": tensor for name, tensor in tensors.items()}


def point_gpt_classifier(width=24, num_labels=5, **sizes):
    tensors = point_gpt_pretraining(width, **sizes)
    tensors = {name.removeprefix("GPT_Transformer."): tensor for name, tensor in tensors.items()}
    head = {f"blocks.{name}": tensor for name, tensor in deep_head(2 * width, num_labels).items()}
    return tensors | class_token(width) | layer_norm("blocks.cls_norm.", width) | head


def point_m2ae_encoder(widths=(12, 18, 24), depth=2):
    tensors, previous = {}, 3
    for stage, width in enumerate(widths):
        hidden = (8, 12, 16) if stage == 0 else (previous, previous, width)
        tensors |= patch_embedding(f"h_encoder.token_embed.{stage}.", previous, *hidden, width)
        tensors |= position_embedding(f"h_encoder.encoder_pos_embeds.{stage}.", width, width)
        tensors |= blocks(f"h_encoder.encoder_blocks.{stage}.blocks.", width, depth)
        previous = width
    return tensors


def point_m2ae_classifier(widths=(12, 18, 24), pooled=24, num_labels=5):
    return point_m2ae_encoder(widths) | layer_norm("norm.", widths[-1]) | deep_head(pooled, num_labels)


def point_m2ae_pretraining(widths=(12, 18, 24), group_size=8):
    tensors = point_m2ae_encoder(widths)
    for stage, width in enumerate(widths):
        tensors |= layer_norm(f"h_encoder.encoder_norms.{stage}.", width)
    tensors |= {"mask_token": torch.randn(1, widths[-1])}
    for step, width in enumerate(widths[:0:-1]):
        tensors |= blocks(f"h_decoder.{step}.blocks.", width, 1)
        tensors |= position_embedding(f"decoder_pos_embeds.{step}.", width, width)
    fine, coarse = widths[1], widths[2]
    tensors |= {"token_prop.0.fuse.net.0.weight": torch.randn(fine, fine + coarse, 1)}
    tensors |= {"token_prop.0.fuse.net.0.bias": torch.randn(fine)} | batch_norm("token_prop.0.fuse.net.1.", fine)
    for net in ("net1", "net2"):
        prefix = f"token_prop.0.extraction.operation.0.{net}."
        tensors |= {f"{prefix}0.weight": torch.randn(fine, fine, 1), f"{prefix}0.bias": torch.randn(fine)}
        tensors |= batch_norm(f"{prefix}1.", fine)
    tensors |= layer_norm("decoder_norm.", fine)
    return tensors | {
        "rec_head.weight": torch.randn(3 * group_size, fine, 1),
        "rec_head.bias": torch.randn(3 * group_size),
    }
