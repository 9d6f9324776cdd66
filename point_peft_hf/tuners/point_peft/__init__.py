"""Point-PEFT (arXiv 2310.03059) as one adapter: geometry, prompts, and the tuning of biases, norm and class token."""

from __future__ import annotations

from torch import nn

from ..base import SlotTuner
from ..geometry_adapter import GEOMETRY_LAYERS
from ..point_prior_prompt import PROMPT_LAYERS, PromptTunerMixin
from ..registry import register_method
from ..slot_layer import SlotLayer
from .config import PointPeftConfig
from .layer import BiasLayer


@register_method("point_peft", PointPeftConfig)
class PointPeftModel(PromptTunerMixin, SlotTuner):
    """Adds the paper's whole method to a backbone, as one adapter (Point-PEFT, arXiv 2310.03059).

    Geometry-aware Adapter, Point-prior Prompt, and the tuning of biases, final norm and class token.

    Example:
        >>> from peft import get_peft_model
        >>> from point_peft_hf import PointMAEConfig, PointMAEForClassification, PointPeftConfig
        >>> model = get_peft_model(PointMAEForClassification(PointMAEConfig(num_labels=15)), PointPeftConfig())
    """

    layer_classes = (*PROMPT_LAYERS, *GEOMETRY_LAYERS, BiasLayer)

    def layers_of(self, peft_config: PointPeftConfig) -> tuple[type[SlotLayer], ...]:
        """The layers of the parts that are switched on."""
        prompts = PROMPT_LAYERS if peft_config.use_prompts else ()
        geometry = GEOMETRY_LAYERS if peft_config.use_geometry else ()
        return (*prompts, *geometry, *((BiasLayer,) if peft_config.tune_biases else ()))

    def frozen_modules(self, peft_config: PointPeftConfig, model: nn.Module) -> tuple[str, ...]:
        """The class token and the like, if they are not tuned."""
        names = () if peft_config.tune_class_token else peft_config.modules_to_save or ()
        return tuple(name for name in names if name.endswith("_token"))

    def _default_modules_to_save(self, peft_config: PointPeftConfig, model: nn.Module) -> list[str] | None:
        names = list(super()._default_modules_to_save(peft_config, model) or ())
        if peft_config.use_geometry or peft_config.use_prompts:
            names += getattr(model, "final_norm_names", ())
        return names or None
