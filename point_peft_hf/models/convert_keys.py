"""Names of the tensors in published checkpoints, and what they are called here.

Two layouts are read: that of the research repositories (Point-BERT, Point-MAE, Point-M2AE, PointGPT, and ACT and
PCP-MAE, which have the encoder of Point-MAE), with whatever prefixes their files carry, and that of the PyPI package
torch-pointcloud. Both are first brought to the names of the research repositories without prefix, and from there to
the names of this package.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import torch

from .convert_ptv3_keys import is_of_family

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

_BLOCK = r"(?P<leaf>norm1|norm2|attn\.proj|mlp\.fc1|mlp\.fc2)\.(?P<kind>weight|bias)"
_QKV = r"attn\.qkv\.(?P<kind>weight|bias)"
_CONV = {"0": "linear1", "1": "norm1", "3": "linear2", "4": "norm2", "6": "linear3"}
# PointGPT names the parts of its blocks after those of GPT.
_GPT_LEAVES = {
    "ln_1.": "norm1.",
    "ln_2.": "norm2.",
    "attn.out_proj.": "attention.out_proj.",
    "mlp.0.": "mlp.fc1.",
    "mlp.2.": "mlp.fc2.",
    "mlp.fc1.": "mlp.fc1.",
    "mlp.fc2.": "mlp.fc2.",
}
_POSITION = {"0": "linear1", "2": "linear2"}
_STATE = r"(?P<kind>weight|bias|running_mean|running_var|num_batches_tracked)"


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


class _Rule:
    """A pattern of research names, and the function from its match to the names here."""

    def __init__(self, pattern: str, target: Callable[[re.Match], str | list[str]]):
        self.pattern, self.target = re.compile(pattern), target

    def __call__(self, name: str) -> list[str] | None:
        match = self.pattern.fullmatch(name)
        if match is None:
            return None
        target = self.target(match)
        return [target] if isinstance(target, str) else target


def _blocks(source: str, target: str) -> list[_Rule]:
    """Rules for a list of blocks; `source` may catch a `stage`, which `target` then names as `{stage}`."""

    def place(match: re.Match) -> str:
        groups = match.groupdict()
        return f"{target.format(stage=groups.get('stage'))}.layers.{groups['block']}"

    leaves = {"attn.proj": "attention.out_proj"}
    return [
        _Rule(
            rf"{source}\.(?P<block>\d+)\.{_BLOCK}",
            lambda m: f"{place(m)}.{leaves.get(m['leaf'], m['leaf'])}.{m['kind']}",
        ),
        _Rule(
            rf"{source}\.(?P<block>\d+)\.{_QKV}",
            lambda m: [f"{place(m)}.attention.{name}_proj.{m['kind']}" for name in "qkv"],
        ),
    ]


def _patch_embedding(source: str, target: str, layers: str = "013") -> _Rule:
    return _Rule(
        rf"{source}\.(?P<half>first|second)_conv\.(?P<layer>[{layers}])\.{_STATE}",
        lambda m: f"{target.format(stage=m.groupdict().get('stage'))}.{m['half']}_{_CONV[m['layer']]}.{m['kind']}",
    )


def _position_embedding(source: str, target: str) -> _Rule:
    return _Rule(
        rf"{source}\.(?P<layer>[02])\.(?P<kind>weight|bias)",
        lambda m: f"{target.format(stage=m.groupdict().get('stage'))}.{_POSITION[m['layer']]}.{m['kind']}",
    )


def _renamed(source: str, target: str) -> _Rule:
    """A rule for one module or parameter, with everything in it."""
    return _Rule(rf"{source}(?P<rest>(\..*)?)", lambda m: target + m["rest"])


def _unused(source: str) -> _Rule:
    """A rule for a module or parameter that has no say in what a model computes."""
    return _Rule(rf"{source}(\..*)?", lambda m: [])


def _head(layers: dict[str, str]) -> list[_Rule]:
    return [_renamed(rf"cls_head_finetune\.{number}", f"classifier.{name}") for number, name in layers.items()]


_DEEP_HEAD_RULES = _head({"0": "dense1", "1": "norm1", "4": "dense2", "5": "norm2", "8": "output"})


def _single_stage(base: str) -> list[_Rule]:
    return [
        _patch_embedding("encoder", f"{base}.patch_embedding"),
        _position_embedding("pos_embed", f"{base}.position_embedding"),
        _renamed("cls_token", f"{base}.class_token.token"),
        _renamed("cls_pos", f"{base}.class_token.position"),
        *_blocks(r"blocks\.blocks", f"{base}.encoder"),
        _renamed("norm", f"{base}.layernorm"),
    ]


def _recon() -> list[_Rule]:
    block, target = r"blocks\.blocks\.(?P<block>\d+)", "recon.encoder.layers.{}"
    kind = r"(?P<kind>weight|bias)"
    names = {"q": "q_proj", "proj": "out_proj", "kv": "k_proj", "img": "image", "text": "text"}
    return [
        *_single_stage("recon"),
        *(
            _renamed(rf"{source}_{part}", f"recon.{names[source]}_token.{here}")
            for source in ("img", "text")
            for part, here in (("token", "token"), ("pos", "position"))
        ),
        _Rule(
            rf"{block}\.norm(?P<number>[12])_contrast\.{kind}",
            lambda m: f"{target.format(m['block'])}.contrast_norm{m['number']}.{m['kind']}",
        ),
        _Rule(
            rf"{block}\.attn_contrast\.(?P<name>q|proj)\.{kind}",
            lambda m: f"{target.format(m['block'])}.contrast_attention.{names[m['name']]}.{m['kind']}",
        ),
        _Rule(
            rf"{block}\.attn_contrast\.kv\.{kind}",
            lambda m: [f"{target.format(m['block'])}.contrast_attention.{name}_proj.{m['kind']}" for name in "kv"],
        ),
        _Rule(
            rf"{block}\.mlp_contrast\.(?P<name>fc[12])\.{kind}",
            lambda m: f"{target.format(m['block'])}.contrast_mlp.{m['name']}.{m['kind']}",
        ),
        *_DEEP_HEAD_RULES,
    ]


def _point_m2ae(num_stages: int) -> list[_Rule]:
    stage, last = r"(?P<stage>\d+)", num_stages - 1
    return [
        _patch_embedding(rf"h_encoder\.token_embed\.{stage}", "point_m2ae.patch_embeddings.{stage}"),
        _position_embedding(rf"h_encoder\.encoder_pos_embeds\.{stage}", "point_m2ae.position_embeddings.{stage}"),
        *_blocks(rf"h_encoder\.encoder_blocks\.{stage}\.blocks", "point_m2ae.stages.{stage}"),
        # The classifier has one norm, behind the last stage; pre-training has one behind each.
        _renamed(rf"h_encoder\.encoder_norms\.{last}", "point_m2ae.layernorm"),
        _Rule(
            rf"h_encoder\.encoder_norms\.(?P<stage>{'|'.join(map(str, range(last)))})\.(?P<kind>weight|bias)",
            lambda m: f"stage_layernorms.{m['stage']}.{m['kind']}",
        ),
        _renamed("norm", "point_m2ae.layernorm"),
        *_DEEP_HEAD_RULES,
        _renamed("mask_token", "mask_token"),
        *_blocks(rf"h_decoder\.{stage}\.blocks", "decoder_stages.{stage}"),
        _position_embedding(rf"decoder_pos_embeds\.{stage}", "decoder_position_embeddings.{stage}"),
        _Rule(
            rf"token_prop\.{stage}\.fuse\.net\.(?P<layer>[01])\.{_STATE}",
            lambda m: f"token_propagations.{m['stage']}.fuse_{('linear', 'norm')[int(m['layer'])]}.{m['kind']}",
        ),
        _Rule(
            rf"token_prop\.{stage}\.extraction\.operation\.(?P<block>\d+)\.net(?P<half>[12])\.(?P<layer>[01])\.{_STATE}",
            lambda m: (
                f"token_propagations.{m['stage']}.layers.{m['block']}."
                f"{('linear', 'norm')[int(m['layer'])]}{m['half']}.{m['kind']}"
            ),
        ),
        _renamed("decoder_norm", "decoder_layernorm"),
        _renamed("rec_head", "reconstruction_head"),
    ]


def _gpt_blocks(source: str, target: str) -> list[_Rule]:
    def place(match: re.Match) -> str:
        return f"{target}.layers.{match['block']}"

    leaves = "|".join(map(re.escape, _GPT_LEAVES))
    return [
        _Rule(
            rf"{source}\.layers\.(?P<block>\d+)\.(?P<leaf>{leaves})(?P<kind>weight|bias)",
            lambda m: f"{place(m)}.{_GPT_LEAVES[m['leaf']]}{m['kind']}",
        ),
        _Rule(
            rf"{source}\.layers\.(?P<block>\d+)\.attn\.in_proj_(?P<kind>weight|bias)",
            lambda m: [f"{place(m)}.attention.{name}_proj.{m['kind']}" for name in "qkv"],
        ),
    ]


def _point_gpt(has_segmentation_head: bool) -> list[_Rule]:
    base = "point_gpt"
    return [
        _patch_embedding("encoder", f"{base}.patch_embedding", layers="01346"),
        _renamed(r"blocks\.sos", f"{base}.start_token.token"),
        _renamed("sos_pos", f"{base}.start_token.position"),
        _renamed("cls_token", f"{base}.class_token.token"),
        _renamed("cls_pos", f"{base}.class_token.position"),
        *_gpt_blocks("blocks", f"{base}.encoder"),
        _renamed(r"blocks\.ln_f", f"{base}.layernorm"),
        _renamed("cls_norm", f"{base}.readout_norm"),
        *_DEEP_HEAD_RULES,
        *_gpt_blocks("generator_blocks", "generator.blocks"),
        _renamed(r"generator_blocks\.ln_f", "generator.layernorm"),
        _renamed(r"generator_blocks\.increase_dim\.0", "generator.reconstruction_head"),
        # In every file, but only the part segmentation has a use for it.
        _renamed("norm", f"{base}.level_norm") if has_segmentation_head else _unused("norm"),
        _unused(r"blocks\.increase_dim"),
        _unused(r"generator_blocks\.sos"),
    ]


def conversion_rules(model_type: str, num_stages: int = 1, has_segmentation_head: bool = False) -> list[_Rule]:
    """Rules from research names to the names of a model here, pre-training and classification alike."""
    if model_type == "point_m2ae":
        return _point_m2ae(num_stages)
    if model_type == "point_gpt":
        return _point_gpt(has_segmentation_head)
    if model_type == "recon":
        return _recon()
    rules = _single_stage(model_type)
    if model_type == "point_bert":
        heads = _head({"0": "dense", "3": "output"})
        return [*rules, _renamed("reduce_dim", "point_bert.patch_projection"), *heads]
    return [
        *rules,
        *_DEEP_HEAD_RULES,
        _renamed("mask_token", "mask_token"),
        _position_embedding("decoder_pos_embed", "decoder_position_embedding"),
        *_blocks(r"MAE_decoder\.blocks", "decoder"),
        _renamed(r"MAE_decoder\.norm", "decoder_layernorm"),
        _renamed(r"increase_dim\.0", "reconstruction_head"),
    ]


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
