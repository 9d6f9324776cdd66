"""Tuner of Point-PEFT as a whole."""

from __future__ import annotations

from torch import nn

from ...slots import AdapterSlot, BiasSlot, FeedForwardSlot, LocalitySlot, OutputSlot, PriorSlot, PromptSlot
from ..base import SlotTuner
from ..geometry_adapter.model import wants_geometry_slot
from ..point_prior_prompt.model import PromptTunerMixin, wants_prompt_slot
from .config import PointPeftConfig
from .layer import (
    PointPeftBiasLayer,
    PointPeftFeedForwardLayer,
    PointPeftLayer,
    PointPeftLocalityLayer,
    PointPeftOutputLayer,
    PointPeftPriorLayer,
    PointPeftPromptLayer,
)


class PointPeftModel(PromptTunerMixin, SlotTuner):
    """Adds the paper's whole method to a backbone, as one adapter (Point-PEFT, arXiv 2310.03059).

    Geometry-aware Adapter, Point-prior Prompt, and the tuning of biases, final norm and class token.

    Example:
        >>> from peft import get_peft_model
        >>> from point_peft_hf import PointMAEConfig, PointMAEForClassification, PointPeftConfig
        >>> model = get_peft_model(PointMAEForClassification(PointMAEConfig(num_labels=15)), PointPeftConfig())
    """

    prefix = "point_peft_"
    tuner_layer_cls = PointPeftLayer
    default_target_modules = (
        "prior_slot",
        "prompt_slot",
        "locality_slot",
        "ffn_slot",
        "output_slot",
        "norm1_bias_slot",
        "out_proj_bias_slot",
        "norm2_bias_slot",
        "fc1_bias_slot",
        "fc2_bias_slot",
    )
    layer_classes = {
        PriorSlot: PointPeftPriorLayer,
        PromptSlot: PointPeftPromptLayer,
        LocalitySlot: PointPeftLocalityLayer,
        FeedForwardSlot: PointPeftFeedForwardLayer,
        OutputSlot: PointPeftOutputLayer,
        BiasSlot: PointPeftBiasLayer,
    }

    def wants_slot(self, peft_config: PointPeftConfig, slot: AdapterSlot) -> bool:
        """Whether the configuration has anything to put around this slot."""
        if isinstance(slot, BiasSlot):
            return peft_config.tune_biases
        if isinstance(slot, PriorSlot | PromptSlot):
            return peft_config.use_prompts and wants_prompt_slot(peft_config, slot)
        return peft_config.use_geometry and wants_geometry_slot(peft_config, slot)

    def _default_modules_to_save(self, peft_config: PointPeftConfig, model: nn.Module) -> list[str] | None:
        names = list(super()._default_modules_to_save(peft_config, model) or ())
        if not peft_config.tune_class_token:
            names = [name for name in names if name != "class_token"]
        if peft_config.tune_norm:
            names += getattr(model, "final_norm_names", ())
        return names or None
