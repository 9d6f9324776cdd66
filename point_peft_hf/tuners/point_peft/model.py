"""Tuner of Point-PEFT as a whole."""

from __future__ import annotations

from torch import nn

from ...slots import AdapterSlot, EntrySlot, LayerSlot, PointSlot, ReadoutSlot, TokenSlot
from ..base import SlotTuner
from ..geometry_adapter.model import GEOMETRY_LAYERS, wants_geometry_slot
from ..point_prior_prompt.model import PROMPT_LAYERS, PromptTunerMixin, wants_prompt_slot
from ..registry import register_method
from .config import PointPeftConfig
from .layer import BiasLayer, StageLayer


@register_method("point_peft", PointPeftConfig)
class PointPeftModel(PromptTunerMixin, SlotTuner):
    """Adds the paper's whole method to a backbone, as one adapter (Point-PEFT, arXiv 2310.03059).

    Geometry-aware Adapter, Point-prior Prompt, and the tuning of biases, final norm and class token.

    Example:
        >>> from peft import get_peft_model
        >>> from point_peft_hf import PointMAEConfig, PointMAEForClassification, PointPeftConfig
        >>> model = get_peft_model(PointMAEForClassification(PointMAEConfig(num_labels=15)), PointPeftConfig())
    """

    layer_classes = {**PROMPT_LAYERS, **GEOMETRY_LAYERS, TokenSlot: StageLayer, LayerSlot: BiasLayer}

    def wants_slot(self, peft_config: PointPeftConfig, slot: AdapterSlot) -> bool:
        """Whether the configuration has anything to put around this slot."""
        if isinstance(slot, LayerSlot):
            return peft_config.tune_biases and slot.is_in_block and slot.has_bias
        wants_prompts = peft_config.use_prompts and wants_prompt_slot(peft_config, slot)
        wants_geometry = peft_config.use_geometry and wants_geometry_slot(peft_config, slot)
        if isinstance(slot, EntrySlot | PointSlot | ReadoutSlot):
            return wants_prompts
        return wants_geometry or (isinstance(slot, TokenSlot) and wants_prompts)

    def _default_modules_to_save(self, peft_config: PointPeftConfig, model: nn.Module) -> list[str] | None:
        names = list(super()._default_modules_to_save(peft_config, model) or ())
        if peft_config.use_geometry or peft_config.use_prompts:
            names += getattr(model, "final_norm_names", ())
        return names or None
