"""Names of the tensors in published checkpoints, and what they are called here.

Two layouts are read: that of the research repositories (Point-BERT, Point-MAE, Point-M2AE, PointGPT, and ACT and
PCP-MAE, which have the encoder of Point-MAE), with whatever prefixes their files carry, and that of the PyPI package
torch-pointcloud. Both are first brought to the names of the research repositories without prefix, and from there to
the names of this package.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from .convert_ptv3_keys import is_of_family
from .convert_rules import Names, NameTable, nested

MODEL_NAMES = {
    "point_bert": "Point-BERT",
    "point_gpt": "PointGPT",
    "point_m2ae": "Point-M2AE",
    "point_mae": "Point-MAE",
    "ptv3": "Point Transformer V3 or one of its kind (Sonata, Concerto, Utonia)",
    "recon": "ReCon",
}
# Wrappers around a whole model: data parallel training, the checkpoint's own key, and Lightning-like ones.
_WRAPPERS = ("module.", "base_model.", "model.")
_ENCODER_MARK = "encoder.first_conv.0.weight"
# Around the encoder of a pre-training stands one more prefix ("MAE_encoder."). The momentum encoder of Point-BERT and
# the tokenisers have names like an encoder's; they are not the one to use.
_NOT_THE_ENCODER = ("transformer_k.", "dvae")
# Modules of an encoder, and parameters: all that are not in a module.
_OF_THE_ENCODER = re.compile(r"(encoder|h_encoder|reduce_dim|pos_embed|blocks|norm)\..*|[^.]*")
# In the blocks of ReCon, and its tokens.
_OF_RECON = re.compile(r"\.(attn|mlp|norm[12])_contrast\.|^(img|text)_(token|pos)$")
# For pre-training only, even where they stand inside of an encoder.
_OF_PRETRAINING = re.compile(r"(h_encoder\.)?(mask_token|mask_pos_token|lm_head|cls_head|queue|queue_ptr)(\..*)?")

# torch-pointcloud -> research repositories.
_TORCH_POINTCLOUD_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\blocal_mlp\.lins\.0\.", "first_conv.0."),
        (r"\blocal_mlp\.norms\.0\.module\.", "first_conv.1."),
        (r"\blocal_mlp\.lins\.1\.", "first_conv.3."),
        (r"\blocal_mlp\.norms\.1\.module\.", "first_conv.4."),
        (r"\blocal_mlp\.lins\.2\.", "first_conv.6."),
        (r"\bglobal_mlp\.lins\.0\.", "second_conv.0."),
        (r"\bglobal_mlp\.norms\.0\.module\.", "second_conv.1."),
        (r"\bglobal_mlp\.lins\.1\.", "second_conv.3."),
        (r"(pos_embeds?(?:\.\d+)?)\.lins\.0\.", r"\1.0."),
        (r"(pos_embeds?(?:\.\d+)?)\.lins\.1\.", r"\1.2."),
        (r"\bfp\.mlp\.lins\.0\.", "fuse.net.0."),
        (r"\bfp\.mlp\.norms\.0\.module\.", "fuse.net.1."),
        (r"\bextraction\.(\d+)\.(net[12])\.lins\.0\.", r"extraction.operation.\1.\2.0."),
        (r"\bextraction\.(\d+)\.(net[12])\.norms\.0\.module\.", r"extraction.operation.\1.\2.1."),
        (r"\bmlp\.lins\.0\.", "mlp.fc1."),
        (r"\bmlp\.lins\.1\.", "mlp.fc2."),
        (r"\bincrease_dim\.lins\.0\.", "increase_dim.0."),
        (r"^norm_f\.", "norm."),
    )
)
_TORCH_POINTCLOUD_MARK = re.compile(r"(^|\.)(lins\.\d+|norms\.\d+\.module)\.")
# Its heads count linear layers and norms; those of the research repositories count all layers.
_DEEP_HEAD = {"lins.0": "0", "norms.0.module": "1", "lins.1": "4", "norms.1.module": "5", "lins.2": "8"}
_SHALLOW_HEAD = {"lins.0": "0", "lins.1": "3"}

# The parts of the models, in the names of the research repositories, and what they are called here.
_QKV = tuple(f"attention.{name}_proj" for name in "qkv")
_BLOCK = {
    **{name: name for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")},
    "attn.qkv": _QKV,
    "attn.proj": "attention.out_proj",
}
_PATCH_EMBEDDING = {
    f"{half}_conv.{number}": f"{half}_{name}"
    for half in ("first", "second")
    for number, name in {"0": "linear1", "1": "norm1", "3": "linear2"}.items()
}
_POSITION_EMBEDDING = {"0": "linear1", "2": "linear2"}
_CLASS_TOKEN = {"cls_token": "class_token.token", "cls_pos": "class_token.position"}
_DEEP_HEAD_NAMES = nested(
    "cls_head_finetune", "classifier", {"0": "dense1", "1": "norm1", "4": "dense2", "5": "norm2", "8": "output"}
)
_SHALLOW_HEAD_NAMES = nested("cls_head_finetune", "classifier", {"0": "dense", "3": "output"})
# In the blocks of ReCon.
_CONTRAST = {
    "norm1_contrast": "contrast_norm1",
    "norm2_contrast": "contrast_norm2",
    "attn_contrast.q": "contrast_attention.q_proj",
    "attn_contrast.kv": ("contrast_attention.k_proj", "contrast_attention.v_proj"),
    "attn_contrast.proj": "contrast_attention.out_proj",
    "mlp_contrast.fc1": "contrast_mlp.fc1",
    "mlp_contrast.fc2": "contrast_mlp.fc2",
}
# PointGPT names the parts of its blocks after those of GPT; torch-pointcloud has its own names for two of them.
_GPT_BLOCK = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    **{f"attn.in_proj_{kind}": tuple(f"{name}.{kind}" for name in _QKV) for kind in ("weight", "bias")},
    "attn.out_proj": "attention.out_proj",
    **dict.fromkeys(("mlp.0", "mlp.fc1"), "mlp.fc1"),
    **dict.fromkeys(("mlp.2", "mlp.fc2"), "mlp.fc2"),
}
_GPT_PATCH_EMBEDDING = {**_PATCH_EMBEDDING, "first_conv.4": "first_norm2", "first_conv.6": "first_linear3"}


def check_model_type(model_type: str) -> None:
    """Check that there is such a model type."""
    if model_type not in MODEL_NAMES:
        raise ValueError(f"`model_type` must be one of {', '.join(map(repr, MODEL_NAMES))}, got {model_type!r}.")


def is_torch_pointcloud(keys: Iterable[str]) -> bool:
    """Whether tensors are named as in the package torch-pointcloud."""
    return any(_TORCH_POINTCLOUD_MARK.search(key) for key in keys)


def guess_model_type(keys: Iterable[str]) -> str | None:
    """The model type that published names belong to, or `None` if they are not of a published layout."""
    keys = list(keys)
    if is_of_family(keys):
        return "ptv3"
    names = research_names(keys).values()
    if any(name.startswith("h_encoder.token_embed.") for name in names):
        return "point_m2ae"
    if any(name.startswith("blocks.layers.0.attn.in_proj_") for name in names):
        return "point_gpt"
    if _ENCODER_MARK not in names:
        return None
    if any(_OF_RECON.search(name) for name in names):
        return "recon"
    return "point_bert" if "reduce_dim.weight" in names else "point_mae"


def research_names(keys: Iterable[str]) -> dict[str, str]:
    """Bring the names in a file to those of the research repositories, without prefix.

    Returns:
        By name in the file, the name to look up. Names that belong to no known layout stay as they are.
    """
    names, wrapper = _wrapped_names(keys)
    return {key: _without_wrapper(name, wrapper) for key, name in names.items()}


def encoder_keys(keys: Iterable[str]) -> tuple[set[str], set[str]]:
    """Which tensors of a file stand inside of its encoder.

    Returns:
        The names in the file of what is inside; and, of a file that has a prefix around its encoder, of what stands
        outside under a name of the encoder, so that it is unclear whether it belongs to it.
    """
    names, wrapper = _wrapped_names(keys)
    inside, unclear = set(), set()
    for key, name in names.items():
        short = name.removeprefix(wrapper)
        if _OF_PRETRAINING.fullmatch(short):
            continue
        if name.startswith(wrapper):
            if wrapper or _OF_THE_ENCODER.fullmatch(name):
                inside.add(key)
        elif _OF_THE_ENCODER.fullmatch(name) and ("." in name or name in ("cls_token", "cls_pos")):
            unclear.add(key)
    return inside, unclear


def _wrapped_names(keys: Iterable[str]) -> tuple[dict[str, str], str]:
    """Research names with the prefix around the encoder, and this prefix."""
    keys = list(keys)
    names = {key: _strip_wrappers(key) for key in keys}
    if is_torch_pointcloud(keys):
        head = _DEEP_HEAD if any(name.startswith("head.lins.2.") for name in names.values()) else _SHALLOW_HEAD
        names = {key: _from_torch_pointcloud(name, head) for key, name in names.items()}
    return names, _encoder_wrapper(names.values())


def _without_wrapper(name: str, wrapper: str) -> str:
    # Blocks may stand in a module that only holds them, or not; that of PointGPT holds the head as well.
    name = re.sub(r"^blocks\.(?=\d)", "blocks.blocks.", name.removeprefix(wrapper))
    return re.sub(r"^blocks\.(?=cls_head_finetune\.|cls_norm\.)", "", name)


def _strip_wrappers(key: str) -> str:
    while True:
        wrapper = next((wrapper for wrapper in _WRAPPERS if key.startswith(wrapper)), None)
        if wrapper is None:
            return key
        key = key[len(wrapper) :]


def _from_torch_pointcloud(name: str, head: dict[str, str]) -> str:
    match = re.match(r"head\.(lins\.\d|norms\.\d\.module)\.(.*)", name)
    if match:
        return f"cls_head_finetune.{head.get(match[1], match[1])}.{match[2]}"
    for pattern, replacement in _TORCH_POINTCLOUD_RULES:
        name = pattern.sub(replacement, name)
    return name


def _encoder_wrapper(names: Iterable[str]) -> str:
    found = {name[: -len(_ENCODER_MARK)] for name in names if name.endswith(_ENCODER_MARK)}
    found = {wrapper for wrapper in found if not wrapper.startswith(_NOT_THE_ENCODER)}
    if len(found) > 1:
        wrappers = " and ".join(repr(f"{wrapper}{_ENCODER_MARK}") for wrapper in sorted(found))
        raise ValueError(f"The checkpoint has several encoders: {wrappers}. Save the one to use in a file of its own.")
    return found.pop() if found else ""


def _single_stage(base: str) -> Names:
    return {
        **nested("encoder", f"{base}.patch_embedding", _PATCH_EMBEDDING),
        **nested("pos_embed", f"{base}.position_embedding", _POSITION_EMBEDDING),
        **{name: f"{base}.{here}" for name, here in _CLASS_TOKEN.items()},
        **nested("blocks.blocks.#", f"{base}.encoder.layers.#", _BLOCK),
        "norm": f"{base}.layernorm",
    }


def _point_bert() -> Names:
    return {**_single_stage("point_bert"), "reduce_dim": "point_bert.patch_projection", **_SHALLOW_HEAD_NAMES}


def _point_mae() -> Names:
    return {
        **_single_stage("point_mae"),
        **_DEEP_HEAD_NAMES,
        "mask_token": "mask_token",
        **nested("decoder_pos_embed", "decoder_position_embedding", _POSITION_EMBEDDING),
        **nested("MAE_decoder.blocks.#", "decoder.layers.#", _BLOCK),
        "MAE_decoder.norm": "decoder_layernorm",
        "increase_dim.0": "reconstruction_head",
    }


def _recon() -> Names:
    tokens = {
        f"{source}_{part}": f"recon.{target}_token.{here}"
        for source, target in (("img", "image"), ("text", "text"))
        for part, here in (("token", "token"), ("pos", "position"))
    }
    blocks = nested("blocks.blocks.#", "recon.encoder.layers.#", _CONTRAST)
    return {**_single_stage("recon"), **tokens, **blocks, **_DEEP_HEAD_NAMES}


def _point_m2ae(num_stages: int) -> Names:
    last, base = num_stages - 1, "point_m2ae"
    residual = {f"net{half}.{layer}": f"{name}{half}" for half in "12" for layer, name in ((0, "linear"), (1, "norm"))}
    return {
        **nested("h_encoder.token_embed.#", f"{base}.patch_embeddings.#", _PATCH_EMBEDDING),
        **nested("h_encoder.encoder_pos_embeds.#", f"{base}.position_embeddings.#", _POSITION_EMBEDDING),
        **nested("h_encoder.encoder_blocks.#.blocks.#", f"{base}.stages.#.layers.#", _BLOCK),
        # The classifier has one norm, after the last stage; pre-training has one after each.
        **{f"h_encoder.encoder_norms.{stage}": f"stage_layernorms.{stage}" for stage in range(last)},
        **dict.fromkeys((f"h_encoder.encoder_norms.{last}", "norm"), f"{base}.layernorm"),
        **_DEEP_HEAD_NAMES,
        "mask_token": "mask_token",
        **nested("h_decoder.#.blocks.#", "decoder_stages.#.layers.#", _BLOCK),
        **nested("decoder_pos_embeds.#", "decoder_position_embeddings.#", _POSITION_EMBEDDING),
        **nested("token_prop.#.fuse.net", "token_propagations.#", {"0": "fuse_linear", "1": "fuse_norm"}),
        **nested("token_prop.#.extraction.operation.#", "token_propagations.#.layers.#", residual),
        "decoder_norm": "decoder_layernorm",
        "rec_head": "reconstruction_head",
    }


def _point_gpt(has_segmentation_head: bool) -> Names:
    base = "point_gpt"
    return {
        **nested("encoder", f"{base}.patch_embedding", _GPT_PATCH_EMBEDDING),
        **nested("blocks.layers.#", f"{base}.encoder.layers.#", _GPT_BLOCK),
        "blocks.sos": f"{base}.start_token.token",
        "sos_pos": f"{base}.start_token.position",
        **{name: f"{base}.{here}" for name, here in _CLASS_TOKEN.items()},
        "blocks.ln_f": f"{base}.layernorm",
        "cls_norm": f"{base}.readout_norm",
        # In every file, but only the part segmentation has a use for it.
        "norm": f"{base}.level_norm" if has_segmentation_head else (),
        **_DEEP_HEAD_NAMES,
        **nested("generator_blocks.layers.#", "generator.blocks.layers.#", _GPT_BLOCK),
        "generator_blocks.ln_f": "generator.layernorm",
        "generator_blocks.increase_dim.0": "generator.reconstruction_head",
        **dict.fromkeys(("generator_blocks.sos", "blocks.increase_dim.#"), ()),
    }


def name_table(model_type: str, num_stages: int = 1, has_segmentation_head: bool = False) -> NameTable:
    """The names here of the research names of a model type, for pre-training and all heads alike."""
    names = {
        "point_bert": _point_bert,
        "point_gpt": lambda: _point_gpt(has_segmentation_head),
        "point_m2ae": lambda: _point_m2ae(num_stages),
        "point_mae": _point_mae,
        "recon": _recon,
    }
    return NameTable(names[model_type]())


def converted_tensors(
    name: str, targets: list[str], tensor: torch.Tensor, from_torch_pointcloud: bool
) -> dict[str, torch.Tensor]:
    """The tensors here that a published tensor becomes.

    Returns:
        Tensors by name: convolutions of kernel size 1 as linear layers, fused projections in their parts.
    """
    if name.endswith(".weight") and tensor.ndim == 3 and tensor.shape[-1] == 1:
        tensor = tensor.squeeze(-1)
    if from_torch_pointcloud and tensor.ndim == 2 and re.fullmatch(r"token_prop\.\d+\.fuse\.net\.0\.weight", name):
        # There the interpolated coarse tokens come before the fine ones.
        num_coarse = tensor.shape[1] - tensor.shape[0]
        tensor = torch.cat([tensor[:, num_coarse:], tensor[:, :num_coarse]], dim=1)
    if name == "blocks.sos" and tensor.ndim == 1:
        tensor = tensor[None, None]
    if len(targets) == 1:
        return {targets[0]: tensor}
    if tensor.ndim == 0 or tensor.shape[0] % len(targets):
        raise ValueError(
            f"{name!r} holds {len(targets)} projections one below the other, but its shape {tuple(tensor.shape)} does "
            f"not divide by {len(targets)}. The file is damaged or of another model."
        )
    return dict(zip(targets, tensor.chunk(len(targets)), strict=True))
