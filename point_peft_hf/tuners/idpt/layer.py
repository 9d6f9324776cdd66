"""Layers of IDPT (arXiv 2304.07221)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from ...slots import AdapterSlot, Backbone, EntrySlot, OutputSlot, ReadoutSlot, Stage, TokenSlot
from ...tokens import CLASS, PATCH, Tokens
from ..explain import Picture
from ..readout import pool
from ..slot_layer import SlotLayer
from .config import IDPTConfig
from .generator import NormedLinear

_POSITION_STD = 0.02


class PromptPosition(nn.Module):
    """A position embedding; a buffer, if it is not trained."""

    def __init__(self, size: int, is_trained: bool):
        super().__init__()
        weight = nn.init.trunc_normal_(torch.empty(size), std=_POSITION_STD)
        if is_trained:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)


class PositionLayer(SlotLayer):
    """In front of the blocks of the last stage: the position embedding that all prompts have."""

    slot_class = TokenSlot
    serves = (EntrySlot,)
    parts = ("prompt_position",)

    @classmethod
    def wants(cls, config: IDPTConfig, slot: AdapterSlot) -> bool:
        """Whether the stage has prompts."""
        return slot.stage.is_last

    def create_parts(self, adapter_name: str, config: IDPTConfig, slot_name: str) -> dict[str, nn.Module]:
        """Create the position embedding."""
        return {"prompt_position": PromptPosition(self.slot.hidden_size, config.train_prompt_position)}

    def adapt(self, name: str, tokens: Tokens, backbone: Backbone) -> Tokens:
        """Share it."""
        return tokens.sharing(f"{self.key(name)}.position", self.part("prompt_position", name).weight)


class PromptLayer(SlotLayer):
    """At the start of a block: makes the prompt, or takes that of the block before away."""

    slot_class = EntrySlot
    parts = ("edge1", "edge2", "edge3", "fusion")

    @classmethod
    def wants(cls, config: IDPTConfig, slot: AdapterSlot) -> bool:
        """Whether the block gets a prompt, or the block before has left one that does not stay."""
        layers = prompt_layers(config, slot.stage)
        return slot.layer_index in layers or (not config.keep_prompts and slot.layer_index - 1 in layers)

    def create_parts(self, adapter_name: str, config: IDPTConfig, slot_name: str) -> dict[str, nn.Module]:
        """Create the generator, with the initialisation of PyTorch's layers, as published."""
        size = self.slot.hidden_size
        if self.slot.layer_index not in prompt_layers(config, self.slot.stage):
            return {}
        if config.generator == "light":
            return {"fusion": NormedLinear(size, size)}
        edges = {part: NormedLinear(2 * size, size) for part in ("edge1", "edge2", "edge3")}
        return {**edges, "fusion": NormedLinear(3 * size, size)}

    def adapt(self, name: str, tokens: Tokens) -> Tokens:
        """Insert the prompt, made of the patch tokens as they left the block before, without positions."""
        key = self.key(name)
        tokens = tokens.without(key, _generated(key))
        if self.part("fusion", name) is None:
            return tokens
        prompt = self.generate(name, tokens.patches).amax(dim=1, keepdim=True)  # (B, 1, C)
        position = tokens.cloud.shared.get(f"{key}.position")
        if position is not None:
            position = position.expand_as(prompt)
        if not self.configs[name].keep_prompts:
            tokens = tokens.carrying(_generated(key), prompt)
        return tokens.insert(key, prompt, position, keeps=True)

    def generate(self, name: str, patches: torch.Tensor) -> torch.Tensor:
        """What the prompt is the maximum of, of shape `(batch_size, num_groups, hidden_size)`."""
        edges = [self.part(part, name) for part in self.parts[:-1]]
        features, results = patches, []
        for edge in filter(None, edges):
            features = edge.on_edges(features, self.configs[name].num_neighbors)
            results.append(features)
        return self.part("fusion", name).on_tokens(torch.cat(results, dim=-1) if results else patches)

    def explain(self, name: str, result: Tokens, tokens: Tokens) -> Iterator[Picture]:
        """Show how much of the prompt comes from each patch token."""
        fusion = self.part("fusion", name)
        if fusion is not None:
            sources = self.generate(name, tokens.patches.to(fusion.weight.dtype))[0].argmax(dim=0)
            values = sources.bincount(minlength=tokens.num_patches)
            yield Picture("features of the prompt from the token", values=values, coordinates=tokens.centers[0])


class GeneratedLayer(SlotLayer):
    """At the end of a block whose prompt does not stay: puts it, as it was made, next to what became of it."""

    slot_class = OutputSlot

    @classmethod
    def wants(cls, config: IDPTConfig, slot: AdapterSlot) -> bool:
        """Whether the block has a prompt that leaves, and a head that may read it as it was made."""
        return not config.keep_prompts and slot.layer_index in prompt_layers(config, slot.stage)

    def adapt(self, name: str, tokens: Tokens) -> Tokens:
        """Insert it."""
        key = _generated(self.key(name))
        prompt, tokens = tokens.taking(key)
        return tokens if prompt is None else tokens.insert(key, prompt, keeps=True)


class ReadoutLayer(SlotLayer):
    """Between pooling and head: class token, prompt and patch tokens, as configured."""

    slot_class = ReadoutSlot
    serves = (EntrySlot,)

    @classmethod
    def wants(cls, config: IDPTConfig, slot: AdapterSlot) -> bool:
        """Whether a head reads what passes here, and not only what the backbone gives it."""
        return slot.is_read and (slot.kind == "cloud" or config.prompt_token)

    def adapt(self, name: str, pooled: torch.Tensor, tokens: Tokens, levels: tuple[Tokens, ...]) -> torch.Tensor:
        """Read out tokens; see [`readout_size`]."""
        config, key = self.configs[name], self.key(name)
        if self.slot.kind == "points":
            prompts = self._prompts(name, levels)
            return torch.cat([pooled, *prompts] if config.patch_pooling else prompts, dim=-1)
        has_class_token = config.class_token and self.slot.stage.num_class
        parts = [pool(levels[-1], CLASS, "each")] if has_class_token else []
        parts += [pool(levels[-1], key, "mean")] if config.prompt_token else []
        parts += [pool(levels[-1], PATCH, config.patch_pooling)] if config.patch_pooling else []
        return torch.cat(parts, dim=-1)

    def _prompts(self, name: str, levels: Sequence[Tokens]) -> list[torch.Tensor]:
        """Prompts for the head of a part segmentation: as they were made, then as they left their blocks."""
        config, key = self.configs[name], self.key(name)
        if config.keep_prompts:
            return [pool(levels[-1], key, "mean")]
        having = [level for level in levels if level.places(key)]
        layers = prompt_layers(config, self.slot.stage)
        if len(having) != len(layers):
            raise ValueError(
                f"The head reads the tokens after {len(levels)} blocks, and of those {len(having)} have a prompt of "
                f"adapter {name!r}, but `prompt_layers` are {layers}. Name blocks that the head reads (see "
                "`feature_layers` of the backbone's configuration), or set `prompt_token=False`."
            )
        return [pool(level, owner, "mean") for owner in (_generated(key), key) for level in having]


def prompt_layers(config: IDPTConfig, stage: Stage) -> list[int]:
    """Numbers of the blocks of a stage that a prompt is made in front of."""
    if not stage.is_last:
        return []
    if config.prompt_layers is None:
        return [stage.layers[-1]]
    if not set(config.prompt_layers) <= set(stage.layers):
        of_stage = "last stage, whose tokens the head reads," if stage.count > 1 else "backbone,"
        raise ValueError(
            f"`prompt_layers`={config.prompt_layers} must be blocks of the {of_stage} which has the numbers "
            f"{stage.layers[0]} to {stage.layers[-1]}."
        )
    return sorted(config.prompt_layers)


def readout_size(config: IDPTConfig, slot: ReadoutSlot) -> int:
    """Width of what the head reads.

    A classification head reads class token, prompt and patch tokens, as configured. The head of a part segmentation
    reads its own summary of the tokens, if `patch_pooling` is not `None`, and the prompts.
    """
    size = slot.stage.hidden_size
    if slot.kind == "cloud":
        num_class = slot.stage.num_class if config.class_token else 0
        return size * (num_class + bool(config.prompt_token) + bool(config.patch_pooling))
    count = 0
    if config.prompt_token:
        count = 1 if config.keep_prompts else 2 * len(prompt_layers(config, slot.stage))
    return (slot.hidden_size if config.patch_pooling or not count else 0) + size * count


def _generated(key: str) -> str:
    """Owner of a prompt as it was made."""
    return f"{key}.generated"
