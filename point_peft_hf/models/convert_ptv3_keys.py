"""Names of the tensors of the Point Transformer V3 family, and what they are called here.

Two layouts are read: that of the research repositories, with the prefixes of their training runs, and that of
torch-pointcloud. The second is first brought to the names of the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .convert_rules import NameTable, nested

_MARK = "embedding.stem."
# In files of a self-supervised training, which also hold the network that is used later.
_STUDENT, _TEACHER = "student.", "teacher."
_HEADS = re.compile(r"(seg_head|cls_head)\.")
# For pre-training only, inside of the encoder.
_OF_PRETRAINING = ("embedding.mask_token",)

_TORCH_POINTCLOUD_MARK = re.compile(r"(encoder\.)?stem\.stem\.")
_BLOCK_LEAVES = {
    "cpe_conv": "cpe.0",
    "cpe_proj": "cpe.1",
    "cpe_norm": "cpe.2",
    "norm1": "norm1.0",
    "norm2": "norm2.0",
    "mlp.0": "mlp.0.fc1",
    "mlp.3": "mlp.0.fc2",
}
_UPSAMPLE = {"proj": "proj.0", "norm": "proj.1", "proj_skip": "proj_skip.0", "norm_skip": "proj_skip.1"}
_CLASS_HEAD = {"0": "dense1", "1": "norm1", "4": "dense2", "5": "norm2", "8": "output"}

_LEAVES = {
    "cpe.0": "position_conv",
    "cpe.1": "position_linear",
    "cpe.2": "position_norm",
    "norm1.0": "norm1",
    "norm2.0": "norm2",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.out_proj",
    "mlp.0.fc1": "mlp.fc1",
    "mlp.0.fc2": "mlp.fc2",
    "ls1.0": "scale1",
    "ls2.0": "scale2",
}
_BLOCK = {**_LEAVES, "attn.rpe.rpe_table": "attention.relative_positions.table"}
_UNPOOLING = {"proj.0": "linear", "proj.1": "norm", "proj_skip.0": "skip_linear", "proj_skip.1": "skip_norm"}
_TABLE = NameTable(
    {
        **nested("embedding.stem", "ptv3.stem", {part: part for part in ("linear", "conv", "norm")}),
        **nested("enc.enc#.down", "ptv3.stages.#.pooling", {"proj": "linear", "norm.0": "norm"}),
        **nested("enc.enc#.block#", "ptv3.stages.#.layers.#", _BLOCK),
        **nested("dec.dec#.up", "ptv3.decoder.unpoolings.#", _UNPOOLING),
        **nested("dec.dec#.block#", "ptv3.decoder.stages.#.layers.#", _BLOCK),
        "seg_head": "semantic_head.linear",
        **nested("cls_head", "classifier", _CLASS_HEAD),
    }
)
ROPE = re.compile(r"(enc|dec)\.(enc|dec)\d+\.block\d+\.attn\.rope\.inv_freq")


def is_torch_pointcloud(keys: Iterable[str]) -> bool:
    """Whether tensors of the family are named as in torch-pointcloud."""
    return any(_TORCH_POINTCLOUD_MARK.match(key) for key in keys)


def is_of_family(keys: Iterable[str]) -> bool:
    """Whether tensors are those of a model of the family, or of a head for one, by their names in a file."""
    names = research_names(keys).values()
    return any(name.startswith(_MARK) for name in names)


def research_names(keys: Iterable[str]) -> dict[str, str]:
    """Bring the names in a file to those of the research repositories, without prefix.

    Returns:
        By name in the file, the name to look up. What stands outside of the model keeps its name.
    """
    keys = list(keys)
    if is_torch_pointcloud(keys):
        depth = len({match[1] for key in keys if (match := re.match(r"decoder\.blocks\.(\d+)\.", key))})
        return {key: _from_torch_pointcloud(key, depth) for key in keys}
    # A parameter may be called so inside of another word: a prefix ends with a dot.
    found = {key[: key.index(_MARK)] for key in keys if re.search(rf"(^|\.){re.escape(_MARK)}", key)}
    if len(found) > 1:
        found -= {prefix for prefix in found if _TEACHER in prefix and prefix.replace(_TEACHER, _STUDENT) in found}
    if len(found) > 1:
        raise ValueError(
            f"The checkpoint has several models: {' and '.join(repr(prefix + _MARK) for prefix in sorted(found))}. "
            "Save the one to use in a file of its own."
        )
    prefix = found.pop() if found else ""
    outer = prefix.removesuffix("backbone.")
    names = {}
    for key in keys:
        if prefix and key.startswith(prefix):
            names[key] = key[len(prefix) :]
        else:
            # A head is next to the backbone, or alone in a file.
            head = key.removeprefix(outer) if prefix else _HEADS.sub(r"\1.", key.removeprefix("module."))
            names[key] = head if _HEADS.match(head) else key
    return names


def _from_torch_pointcloud(key: str, decoder_depth: int) -> str:
    name = key.removeprefix("encoder.").replace(".norm.module.", ".norm.").replace(".norm_skip.module.", ".norm_skip.")
    name = re.sub(r"^stem\.norm\.module\.", "stem.norm.", name)
    if match := re.match(r"stem\.(stem|norm)\.(.*)", name):
        return f"embedding.stem.{'stem' if match[1] == 'stem' else 'norm'}.{match[2]}"
    if match := re.match(r"(decoder\.)?blocks\.(\d+)\.blocks\.(\d+)\.(.*)", name):
        stage = f"dec.dec{decoder_depth - 1 - int(match[2])}" if match[1] else f"enc.enc{match[2]}"
        leaf = match[4]
        for source, target in _BLOCK_LEAVES.items():
            if leaf.startswith(f"{source}."):
                leaf = target + leaf[len(source) :]
                break
        return f"{stage}.block{match[3]}.{leaf}"
    if match := re.match(r"blocks\.(\d+)\.downsample\.(proj|norm)\.(.*)", name):
        return f"enc.enc{match[1]}.down.{'proj' if match[2] == 'proj' else 'norm.0'}.{match[3]}"
    if match := re.match(r"decoder\.blocks\.(\d+)\.upsample\.(\w+)\.(.*)", name):
        part = _UPSAMPLE.get(match[2], match[2])
        return f"dec.dec{decoder_depth - 1 - int(match[1])}.up.{part}.{match[3]}"
    if match := re.match(r"head\.(weight|bias)$", name):
        return f"seg_head.{match[1]}"
    return key


def with_stem(names: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """Names in which the layer of the stem has that of its kind, which torch-pointcloud's has not."""
    kinds = {key: "conv" if len(shapes[key]) == 5 else "linear" for key in names}
    conv = any(name == "embedding.stem.stem.weight" and kinds[key] == "conv" for key, name in names.items())
    kind = "conv" if conv else "linear"
    return {key: name.replace("embedding.stem.stem.", f"embedding.stem.{kind}.") for key, name in names.items()}


def target_name(name: str) -> str | None:
    """The name here of a tensor, by its research name; `None` for what a model here does not have."""
    return next(iter(_TABLE(name) or ()), None)


def is_left_out(name: str) -> bool:
    """Whether a tensor has no say in what a model here computes, by its research name."""
    return name in _OF_PRETRAINING or ROPE.fullmatch(name) is not None


def is_inside(name: str) -> bool:
    """Whether a tensor is a part of the encoder, the decoder or a head, by its research name."""
    return re.match(r"(embedding|enc|dec)\.|(seg_head|cls_head)\.", name) is not None
