"""Configuration of Point-PEFT as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import PointTunerConfig, option
from ..geometry_adapter.config import GeometryAdapterConfig, GeometryOptions
from ..point_prior_prompt.config import PointPriorPromptConfig, PromptOptions


@dataclass
class PointPeftConfig(GeometryOptions, PromptOptions, PointTunerConfig):
    """Configuration of the paper's whole method (Point-PEFT, arXiv 2310.03059; type POINT_PEFT) in one adapter.

    Geometry-aware Adapter, Point-prior Prompt, and the tuning of biases, final norm and class token. The fields are
    those of [`GeometryOptions`], [`PromptOptions`] and [`~point_peft_hf.tuners.config.PointTunerConfig`], and:

    Args:
        use_geometry: Whether there is a Geometry-aware Adapter.
        use_prompts: Whether there are Point-prior Prompts.
        tune_biases: Whether the biases of norms, attention output and feed-forward network are tuned (as shifts that
            start at 0; the backbone's own biases stay as they are).
        tune_class_token: Whether the class token is trained. If not, it is saved as it is, and where nothing else is
            trained in the blocks, they run without a backward pass.

    Besides the head and the class token, the norm after the last block is tuned and saved, unless there are neither a
    Geometry-aware Adapter nor prompts; `modules_to_save` overrides that.

    Raises:
        ValueError: If a value does not fit, with the name of the field and the value got.
    """

    use_geometry: bool = option(True, "Geometry-aware Adapter.")
    use_prompts: bool = option(True, "Point-prior Prompt.")
    tune_biases: bool = option(True, "Tune the biases of the blocks.")
    tune_class_token: bool = option(True, "Train the class token; if not, it is saved as it is.")

    def __post_init__(self):
        super().__post_init__()
        self._check_prompts()

    @property
    def use_prompt_coordinates(self) -> bool:
        """Whether prompts have coordinates, with which the Geometry-aware Adapter groups them with the tokens."""
        return self.use_geometry

    @classmethod
    def describe(cls, fields: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        """See [`~point_peft_hf.tuners.config.PointTunerConfig.describe`]."""
        geometry, geometry_fields = GeometryAdapterConfig.describe(fields)
        prompts, prompt_fields = PointPriorPromptConfig.describe(fields)
        if fields.get("use_geometry", True) and fields.get("use_prompts", True):
            kind = "Point-prior Prompts" if fields.get("use_bank", True) else "prompts without a memory bank"
            text = f"Point-PEFT (arXiv 2310.03059): a Geometry-aware Adapter and {kind} in the blocks"
            return text, (*geometry_fields, *prompt_fields)
        if fields.get("use_geometry", True):
            return geometry, geometry_fields
        if fields.get("use_prompts", True):
            return prompts, prompt_fields
        if fields.get("tune_biases", True):
            return "the biases of the blocks, and the head", ()
        if fields.get("tune_class_token", True):
            return "the head and the class token (linear probe)", ()
        return "the head alone (linear probe)", ()
