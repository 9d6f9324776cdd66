"""Layers of the Point-prior Prompt (Point-PEFT, arXiv 2310.03059, section 3.2)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from ...slots import BlockContext, PromptSet
from ..base import SlotLayer, bottleneck_size
from ..bottleneck import Bottleneck
from ..inserting_layer import InsertingLayer
from .bank import BankBuffers, PointPriorBank, check_bank, select_entries
from .config import PointPriorPromptConfig, PromptOptions
from .dynamics import update_entries
from .retrieval import retrieve


class PromptEmbedding(nn.Module):
    """One learnable row for each prompt token.

    Args:
        num_prompt_tokens: Number of rows.
        size: Width of a row.
    """

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


class PriorLayerMixin:
    """Around a [`~point_peft_hf.slots.PriorSlot`]: asks the bank, once in a forward pass. It owns the bank."""

    parts = ("prompt_coordinates",)
    buffer_parts = ("bank",)

    @property
    def banks(self) -> nn.ModuleDict:
        """The banks, by adapter name."""
        return getattr(self, f"{self.prefix}bank")

    @property
    def needs_query_features(self) -> bool:
        """Whether the context must bring `query_features`."""
        return self.base_layer.needs_query_features or any(c.query == "encoder" for _, c in self._working_banks())

    @property
    def query_depths(self) -> frozenset[int]:
        """For which numbers of blocks the context must bring `token_features`."""
        own = (config.query_depth for _, config in self._working_banks() if config.query == "tokens")
        return self.base_layer.query_depths | frozenset(own)

    @property
    def updates_bank(self) -> bool:
        """Whether [`update_banks`] must be called at the end of this forward pass."""
        return self.base_layer.updates_bank or any(self._is_updated(config) for _, config in self._working_banks())

    def update_banks(self, context: BlockContext) -> None:
        """Refresh the banks that are updated in training.

        Args:
            context: What the pass began with, but with the features of the adapted model in the place of those of the
                frozen one.
        """
        self.base_layer.update_banks(context)
        for name, config in self._working_banks():
            if self._is_updated(config):
                ids = self._sample_ids(name, config, context, "bank_update")
                update_entries(
                    self.banks[name], self._query(name, config, context), ids, config.bank_update, config.bank_momentum
                )

    def _working_banks(self) -> Iterator[tuple[str, PromptOptions]]:
        return ((name, self.configs[name]) for name in self.working_adapters() if name in self.banks)

    def _is_updated(self, config: PromptOptions) -> bool:
        return config.bank_update != "none" and self.training and torch.is_grad_enabled()

    def create_parts(self, adapter_name: str, config: PromptOptions, slot_name: str) -> dict[str, nn.Module]:
        """Create the bank, with room for `config.bank_size` entries, and the coordinates of the prompts."""
        created = {}
        if config.use_bank and self.slot.is_last_stage:
            created["bank"] = BankBuffers(
                config.bank_size, self.slot.hidden_size, config.bank_dtype, config.bank_update == "queue"
            )
        if config.use_prompt_coordinates and self.slot.is_first_stage:
            created["prompt_coordinates"] = PromptEmbedding(config.num_prompt_tokens, 3)
            created["prompt_coordinates"].spread_on_sphere(0.5)
        return created

    def set_bank(self, adapter_name: str, bank: PointPriorBank) -> None:
        """Fill the bank of an adapter, selected and stored as its configuration says.

        Raises:
            ValueError: If the bank does not fit.
        """
        config = self.configs[adapter_name]
        check_bank(bank, self.slot.hidden_size, config)
        bank = select_entries(bank, config)
        self.banks[adapter_name].fill(bank)
        config.bank_size = len(bank)

    def forward(self, context: BlockContext) -> BlockContext:
        """Add to the context what the prompts of this stage are enhanced with, and where they are."""
        context = self.base_layer(context)
        for name in self.working_adapters():
            config, coordinates = self.configs[name], self.part("prompt_coordinates", name)
            if coordinates is not None:
                context.prompt_coordinates[name] = coordinates.weight
            context.prompts[name] = PromptSet(
                count=config.num_prompt_tokens,
                cache=self._retrieve(name, config, context) if name in self.banks else None,
                coordinates=context.prompt_coordinates.get(name),
            )
        return context

    def _retrieve(self, name: str, config: PromptOptions, context: BlockContext) -> torch.Tensor:
        bank, own_ids = self.banks[name], None
        if self.training and len(bank) == 0 and not torch.compiler.is_compiling():
            warnings.warn(
                f"Adapter {name!r} is trained with an empty bank: its prompts know nothing of the training clouds. "
                "Call build_point_prior_bank(model, dataloader) first, or set `use_bank=False`.",
                stacklevel=2,
            )
        if config.leave_own_entry_out and self.training and len(bank) > 0:
            own_ids = self._sample_ids(name, config, context, "leave_own_entry_out")
        return retrieve(
            self._query(name, config, context),
            bank.entries,
            config.num_prompt_tokens,
            config.retrieved_count,
            config.retrieval_temperature,
            form=config.retrieval,
            own_ids=own_ids,
        )

    def _query(self, name: str, config: PromptOptions, context: BlockContext) -> torch.Tensor:
        shape = (len(context.group_centers), self.slot.hidden_size)
        if config.query == "tokens":
            # The backbone was found to give them when the adapter was attached.
            return context.token_features[config.query_depth]
        query = context.query_features
        if query is None or query.shape != shape:
            got = "none" if query is None else f"features of shape {tuple(query.shape)}"
            raise ValueError(
                f"Adapter {name!r} asks its bank with the features of the frozen encoder, but got {got}. Pass "
                f"`query_features` of shape (batch_size, hidden_size) = {shape}, or none to let the backbone compute "
                "them."
            )
        return query

    def _sample_ids(self, name: str, config: PromptOptions, context: BlockContext, option: str) -> torch.Tensor:
        ids, shape = context.sample_ids, (len(context.group_centers),)
        if ids is None or ids.shape != shape or ids.dtype.is_floating_point or ids.dtype == torch.bool:
            got = "none" if ids is None else f"{ids.dtype} of shape {tuple(ids.shape)}"
            raise ValueError(
                f"Adapter {name!r} must know the clouds in training, because of `{option}`="
                f"{getattr(config, option)!r}, but got {got}. Pass `sample_ids`, integers of shape (batch_size,) = "
                f"{shape}, to the model, as `PointCloudCollator` puts them into a batch."
            )
        return ids.to(context.group_centers.device)


class PromptLayerMixin:
    """The prompt tokens of an [`InsertingLayer`]."""

    parts = ("prompt_embedding", "prompt_bottleneck")

    def create_parts(self, adapter_name: str, config: PromptOptions, slot_name: str) -> dict[str, nn.Module]:
        """Create the embeddings and, where they are enhanced, the bottleneck for the retrieved features."""
        hidden_size = self.slot.hidden_size
        initialization = config.initialization if config.init_weights else "random"
        created = {"prompt_embedding": PromptEmbedding(config.num_prompt_tokens, hidden_size)}
        nn.init.trunc_normal_(created["prompt_embedding"].weight, std=0.02)
        if config.use_bank and self.slot.is_last_stage:
            width = bottleneck_size(config, slot_name, config.prompt_bottleneck_size)
            created["prompt_bottleneck"] = Bottleneck(hidden_size, width, config.prompt_dropout)
            created["prompt_bottleneck"].reset_parameters(initialization)
        return created

    def prompt_count(self, config: PromptOptions) -> int:
        """Number of prompts of a block."""
        return config.num_prompt_tokens

    def make_prompts(self, name: str, hidden_states: torch.Tensor, context: BlockContext) -> torch.Tensor:
        """dropout(E) + Z + A(Z), of shape `(batch_size, num_prompt_tokens, hidden_size)`, with Z of the prior slot."""
        prompt_set, bottleneck = context.prompts.get(name), self.part("prompt_bottleneck", name)
        if prompt_set is None or (bottleneck is not None and prompt_set.cache is None):
            raise ValueError(
                f"The context of block {self.slot.layer_index} has no prompts of adapter {name!r}. Prepare it with "
                "`prepare_context` (see point_peft_hf.slots) and leave the prior slot among the `target_modules`."
            )
        embedding = self.part("prompt_embedding", name).weight.expand(len(hidden_states), -1, -1)
        prompts = F.dropout(embedding, self.configs[name].prompt_dropout, self.training)
        if bottleneck is None:
            return prompts
        cache = prompt_set.cache.to(prompts.dtype)
        return prompts + cache + bottleneck(cache)


class PointPriorPromptLayer(SlotLayer):
    """Base of the layers of type POINT_PRIOR_PROMPT."""

    prefix = "point_prior_prompt_"
    configs: dict[str, PointPriorPromptConfig]


class PointPriorPromptPriorLayer(PriorLayerMixin, PointPriorPromptLayer):
    """Prior layer of type POINT_PRIOR_PROMPT."""


class PointPriorPromptPromptLayer(PromptLayerMixin, InsertingLayer, PointPriorPromptLayer):
    """Prompt layer of type POINT_PRIOR_PROMPT."""
