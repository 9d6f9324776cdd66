"""Tuner of the Point-prior Prompt."""

from __future__ import annotations

from torch import nn

from ...slots import AdapterSlot, PriorSlot, PromptSlot
from ..base import SlotTuner
from .config import PromptOptions
from .layer import PointPriorPromptLayer, PointPriorPromptPriorLayer, PointPriorPromptPromptLayer


def wants_prompt_slot(config: PromptOptions, slot: AdapterSlot) -> bool:
    """Whether Point-prior Prompts have something to put around a slot."""
    if isinstance(slot, PromptSlot):
        is_behind_query = slot.layer_index >= config.query_depth
        return is_behind_query and (config.prompt_depth is None or slot.layer_index < config.prompt_depth)
    return isinstance(slot, PriorSlot)


class PromptTunerMixin:
    """Refuses backbones that cannot give what a bank needs, and prompts that its features never reach."""

    def _prepare_model(self, peft_config: PromptOptions, model: nn.Module) -> None:
        stages = {module.is_last_stage for module in model.modules() if isinstance(module, PromptSlot)}
        peft_config.resolve_prompt_depth(has_stages=len(stages) > 1)
        super()._prepare_model(peft_config, model)
        if not peft_config.use_bank:
            return
        self._check_bank_is_used(peft_config)
        for slot in self._slots.values():
            if isinstance(slot, PriorSlot) and slot.is_last_stage:
                if peft_config.query == "tokens":
                    _check_query_depth(peft_config.query_depth, slot.max_query_depth, type(model).__name__)
                if peft_config.bank_update != "none" and slot.max_query_depth is None:
                    raise ValueError(
                        f"`bank_update`={peft_config.bank_update!r} needs a backbone of point_peft_hf, but "
                        f"{type(model).__name__} is none. Use 'none'."
                    )

    def _check_bank_is_used(self, peft_config: PromptOptions) -> None:
        slots = {name: slot for name, slot in self._slots.items() if isinstance(slot, PromptSlot)}
        prompted = [s for name, s in slots.items() if self._check_target_module_exists(peft_config, name) is True]
        if prompted and not any(slot.is_last_stage for slot in prompted):
            users = [slot.layer_index for slot in slots.values() if slot.is_last_stage]
            raise ValueError(
                f"Only the blocks {users} of this backbone use a bank, and prompts are in the blocks "
                f"{[slot.layer_index for slot in prompted]}. Pass `prompt_depth=None` (got "
                f"{peft_config.prompt_depth}) or other `layers_to_transform`, or `use_bank=False`."
            )


def _check_query_depth(depth: int, largest: int | None, name: str) -> None:
    if largest is None:
        raise ValueError(f"`query='tokens'` needs a backbone of point_peft_hf, but {name} is none. Use 'encoder'.")
    if depth > largest:
        raise ValueError(f"`query_depth` must be at most {largest} for this {name}, got {depth}.")


class PointPriorPromptModel(PromptTunerMixin, SlotTuner):
    """Adds Point-prior Prompts to a backbone (Point-PEFT, arXiv 2310.03059, section 3.2).

    Deep prompt tokens, enhanced with the features of the most similar training clouds in a memory bank.

    Example:
        >>> from peft import get_peft_model
        >>> from point_peft_hf import PointMAEConfig, PointMAEForClassification, PointPriorPromptConfig
        >>> from point_peft_hf import build_point_prior_bank
        >>> model = get_peft_model(PointMAEForClassification(PointMAEConfig(num_labels=15)), PointPriorPromptConfig())
        >>> bank = build_point_prior_bank(model, train_dataloader)  # doctest: +SKIP
    """

    prefix = "point_prior_prompt_"
    tuner_layer_cls = PointPriorPromptLayer
    default_target_modules = ("prior_slot", "prompt_slot")
    layer_classes = {PriorSlot: PointPriorPromptPriorLayer, PromptSlot: PointPriorPromptPromptLayer}

    def wants_slot(self, peft_config: PromptOptions, slot: AdapterSlot) -> bool:
        """Whether the configuration has anything to put around this slot."""
        return wants_prompt_slot(peft_config, slot)
