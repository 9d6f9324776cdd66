"""Layers of the Point-prior Prompt (Point-PEFT, arXiv 2310.03059, section 3.2)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from ...slots import AdapterSlot, Backbone, EntrySlot, PointSlot, ReadoutSlot, TokenSlot
from ...tokens import Cloud, Tokens
from ..bottleneck import Bottleneck
from ..explain import Picture, Places, References
from ..slot_layer import SlotLayer, bottleneck_size
from .bank import BankBuffers, PointPriorBank, check_bank, select_entries
from .config import PromptOptions
from .dynamics import update_entries
from .explain import report_retrieval
from .retrieval import retrieve

# What remains of an entry in a step of `bank_update="ema"`.
BANK_MOMENTUM = 0.99


class PromptEmbedding(nn.Module):
    """One learnable row for each prompt token."""

    def __init__(self, num_prompt_tokens: int, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_prompt_tokens, size))

    @torch.no_grad()
    def spread_on_sphere(self, radius: float) -> None:
        """Initialise rows of 3 coordinates evenly on a sphere (Fibonacci lattice), so that each has its own place."""
        if self.weight.is_meta:
            return
        index = torch.arange(len(self.weight), dtype=torch.float64) + 0.5
        height = 1 - 2 * index / len(self.weight)
        angle = index * math.pi * (3 - math.sqrt(5))
        ring = (1 - height**2).sqrt()
        self.weight.copy_(radius * torch.stack([ring * angle.cos(), height, ring * angle.sin()], dim=1))


class Answer(NamedTuple):
    """What a bank was asked and answers, for the blocks and for its update.

    Attributes:
        rows: What the prompts are enhanced with, of shape `(batch_size, num_prompt_tokens, hidden_size)`.
        entering: What the adapted model has in the place of the query "tokens", of shape `(batch_size, hidden_size)`.
        summarize: What makes the query "encoder" of the tokens of the adapted model.
    """

    rows: torch.Tensor
    entering: torch.Tensor
    summarize: Callable[[Tokens], torch.Tensor] | None


class PromptCoordinatesLayer(SlotLayer):
    """Around a [`~point_peft_hf.slots.PointSlot`]: the coordinates of the prompts, which all blocks share."""

    slot_class = PointSlot
    serves = (EntrySlot,)
    parts = ("prompt_coordinates",)

    @classmethod
    def wants(cls, config: PromptOptions, slot: AdapterSlot) -> bool:
        """Whether prompts have coordinates."""
        return config.use_prompt_coordinates

    def create_parts(self, adapter_name: str, config: PromptOptions, slot_name: str) -> dict[str, nn.Module]:
        """Create the coordinates."""
        coordinates = PromptEmbedding(config.num_prompt_tokens, 3)
        coordinates.spread_on_sphere(0.5)
        return {"prompt_coordinates": coordinates}

    def adapt(self, name: str, cloud: Cloud, backbone: Backbone) -> Cloud:
        """Share the coordinates."""
        return cloud.sharing(f"{self.key(name)}.coordinates", self.part("prompt_coordinates", name).weight)


class BankLayer(SlotLayer):
    """Around the [`~point_peft_hf.slots.TokenSlot`] of the last stage: asks the bank, once in a forward pass."""

    slot_class = TokenSlot
    serves = (EntrySlot,)
    buffer_parts = ("bank",)

    @classmethod
    def wants(cls, config: PromptOptions, slot: AdapterSlot) -> bool:
        """Whether there is a bank, whose features have the width of the last stage."""
        return config.use_bank and slot.stage.is_last

    @property
    def banks(self) -> nn.ModuleDict:
        """The banks, by adapter name."""
        return getattr(self, f"{self.prefix}bank")

    def create_parts(self, adapter_name: str, config: PromptOptions, slot_name: str) -> dict[str, nn.Module]:
        """Create the bank, with room for `config.bank_size` entries."""
        is_queue = config.bank_update == "queue"
        return {"bank": BankBuffers(config.bank_size, self.slot.hidden_size, config.bank_dtype, is_queue)}

    def set_bank(self, adapter_name: str, bank: PointPriorBank) -> None:
        """Fill the bank of an adapter, selected and stored as its configuration says."""
        config = self.configs[adapter_name]
        check_bank(bank, self.slot.hidden_size, config)
        bank = select_entries(bank, config)
        self.banks[adapter_name].fill(bank)
        config.bank_size = len(bank)

    def adapt(self, name: str, tokens: Tokens, backbone: Backbone) -> Tokens:
        """Share what the prompts are enhanced with."""
        config, bank, own_ids = self.configs[name], self.banks[name], None
        query = self._query(name, config, tokens, backbone)
        if self.training and len(bank) == 0 and not torch.compiler.is_compiling():
            warnings.warn(
                f"Adapter {name!r} is trained with an empty bank: its prompts know nothing of the training clouds. "
                "Call build_point_prior_bank(model, dataloader) first, or set `use_bank=False`.",
                stacklevel=2,
            )
        if config.leave_own_entry_out and self.training and len(bank) > 0:
            own_ids = sample_ids(name, config, tokens.cloud, "leave_own_entry_out")
        rows = retrieve(
            query,
            bank.entries,
            config.num_prompt_tokens,
            config.retrieved_count,
            form=config.retrieval,
            own_ids=own_ids,
        )
        is_updated = self.training and torch.is_grad_enabled() and config.bank_update != "none"
        entering = tokens.patches.detach().mean(dim=1) if is_updated else rows[:, 0]
        if is_updated:
            tokens = tokens.sharing(f"{self.key(name)}.bank", bank)
        return tokens.sharing(self.key(name), Answer(rows, entering, backbone.summarize if is_updated else None))

    def _query(self, name: str, config: PromptOptions, tokens: Tokens, backbone: Backbone) -> torch.Tensor:
        if self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            backbone.check_frozen("the point-prior bank holds features of the backbone as it was")
        ask = backbone.frozen_features if config.query == "encoder" else self._entering_tokens(backbone)
        shape = (tokens.features.shape[0], self.slot.hidden_size)
        query = tokens.cloud.memo.once(
            f"{self.key(name)}.query", lambda: ask(tokens.cloud), per_cloud=True, shape=shape
        )
        return query.to(tokens.features.device)

    def _entering_tokens(self, backbone: Backbone) -> Callable[[Cloud], torch.Tensor]:
        """The mean over the patch tokens that enter the stage, in the pre-trained encoder."""
        depth = self.slot.stage.first_layer
        return lambda cloud: backbone.frozen_tokens(cloud, depth).patches.mean(dim=1)

    def explain(self, name: str, result: Tokens, *inputs: Any) -> Iterator[References]:
        """Show the entries that the bank answers with."""
        bank, config = self.part("bank", name), self.configs[name]
        if bank is None or len(bank) == 0:
            return
        _, backbone = inputs
        query = self._query(name, config, result, backbone)
        report = result.cloud.memo.once(f"{self.key(name)}.report", lambda: report_retrieval(query, bank, config))
        yield References(
            "entries of the bank",
            report.labels[0],
            report.sample_ids[0],
            report.similarities[0],
            report.weights[0],
        )


class BankUpdateLayer(SlotLayer):
    """Around a [`~point_peft_hf.slots.ReadoutSlot`]: banks that change in training learn the adapted features.

    The bank itself is part of the [`BankLayer`], which shares it.
    """

    slot_class = ReadoutSlot
    serves = (EntrySlot,)

    @classmethod
    def wants(cls, config: PromptOptions, slot: AdapterSlot) -> bool:
        """Whether the bank changes in training."""
        return slot.kind == "cloud" and config.use_bank and config.bank_update != "none"

    def adapt(self, name: str, pooled: torch.Tensor, tokens: Tokens, levels: tuple[Tokens, ...]) -> torch.Tensor:
        """Update the bank, and return `pooled` as it is."""
        if not (self.training and torch.is_grad_enabled()):
            return pooled
        config, shared = self.configs[name], tokens.cloud.shared
        answer, bank = shared[self.key(name)], shared[f"{self.key(name)}.bank"]
        ids = sample_ids(name, config, tokens.cloud, "bank_update")
        features = answer.entering if config.query == "tokens" else answer.summarize(levels[-1]).detach()
        update_entries(bank, features, ids, config.bank_update, BANK_MOMENTUM)
        return pooled


class PromptLayer(SlotLayer):
    """Around an [`~point_peft_hf.slots.EntrySlot`]: prompt tokens that live for one block."""

    slot_class = EntrySlot
    parts = ("prompt_embedding", "prompt_bottleneck")

    @classmethod
    def wants(cls, config: PromptOptions, slot: AdapterSlot) -> bool:
        """Whether the block has prompts."""
        return config.prompt_depth is None or slot.layer_index < config.prompt_depth

    def create_parts(self, adapter_name: str, config: PromptOptions, slot_name: str) -> dict[str, nn.Module]:
        """Create the embeddings and, where they are enhanced, the bottleneck for the retrieved features."""
        hidden_size = self.slot.hidden_size
        created = {"prompt_embedding": PromptEmbedding(config.num_prompt_tokens, hidden_size)}
        nn.init.trunc_normal_(created["prompt_embedding"].weight, std=0.02)
        if config.use_bank and self.slot.stage.is_last:
            width = bottleneck_size(config, slot_name, config.prompt_bottleneck_size)
            created["prompt_bottleneck"] = Bottleneck(hidden_size, width, config.dropout, config.init_weights)
        return created

    def adapt(self, name: str, tokens: Tokens) -> Tokens:
        """Insert dropout(E) + Z + A(Z), of shape `(batch_size, num_prompt_tokens, hidden_size)`; the bank gives Z."""
        shared, bottleneck = tokens.cloud.shared, self.part("prompt_bottleneck", name)
        embedding = self.part("prompt_embedding", name).weight.expand(tokens.features.shape[0], -1, -1)
        prompts = F.dropout(embedding, self.configs[name].dropout, self.training)
        if bottleneck is not None:
            answer = shared.get(self.key(name))
            if answer is None:
                raise ValueError(
                    f"Block {self.slot.layer_index} got nothing from the bank of adapter {name!r}. Let its tokens "
                    "pass the token slot first (see point_peft_hf.slots), and leave it out of `exclude_modules`."
                )
            rows = answer.rows.to(prompts.dtype)
            prompts = prompts + rows + bottleneck(rows)
        return tokens.insert(self.key(name), prompts, coordinates=shared.get(f"{self.key(name)}.coordinates"))

    def explain(self, name: str, result: Tokens, *inputs: Tokens) -> Iterator[Picture]:
        """Show where the prompts are, and what they are enhanced with."""
        coordinates = result.cloud.shared.get(f"{self.key(name)}.coordinates")
        if coordinates is None:
            return
        report = result.cloud.memo.values.get(f"{self.key(name)}.report")
        if self.part("prompt_bottleneck", name) is None:
            places = [Places("prompt: not enhanced", coordinates, on_top=True)]
        elif report is None:
            places = [Places("prompt: own feature", coordinates, on_top=True)]
        else:
            single = coordinates[2:]
            places = [
                Places("prompt: own feature", coordinates[:1], on_top=True),
                Places("prompt: average of the bank's answer", coordinates[1:2], on_top=True),
                Places("prompt: single entry", single, report.labels[0, : len(single)], on_top=True),
            ]
        yield Picture("source of the prompts", places)


def sample_ids(name: str, config: PromptOptions, cloud: Cloud, option: str) -> torch.Tensor:
    """The numbers of the clouds.

    Raises:
        ValueError: If there are none, of shape `(batch_size,)`.
    """
    ids, shape = cloud.sample_ids, (cloud.points.shape[0],)
    if ids is None or ids.shape != shape or ids.dtype.is_floating_point or ids.dtype == torch.bool:
        got = "none" if ids is None else f"{ids.dtype} of shape {tuple(ids.shape)}"
        raise ValueError(
            f"Adapter {name!r} must know the clouds in training, because of `{option}`={getattr(config, option)!r}, "
            f"but got {got}. Pass `sample_ids`, integers of shape (batch_size,) = {shape}, to the model, as "
            "`PointCloudCollator` puts them into a batch."
        )
    return ids.to(cloud.points.device)
