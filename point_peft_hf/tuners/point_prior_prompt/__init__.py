"""Point-prior Prompt: prompts enhanced from a memory bank of training features (Point-PEFT, arXiv 2310.03059)."""

from __future__ import annotations

from torch import nn

from ...slots import EntrySlot, ReadoutSlot
from ..base import SlotTuner, slots_by_name
from ..registry import register_method
from ..selection import check_prompted
from .bank import PointPriorBank, set_point_prior_bank
from .build import build_point_prior_bank
from .compression import compress_bank
from .config import PointPriorPromptConfig, PromptOptions
from .explain import RetrievalReport, explain_retrieval
from .layer import BankLayer, BankUpdateLayer, PromptCoordinatesLayer, PromptLayer
from .retrieval import retrieve

PROMPT_LAYERS = (PromptCoordinatesLayer, BankLayer, PromptLayer, BankUpdateLayer)


class PromptTunerMixin:
    """Refuses backbones that cannot give what a bank needs, and prompts that its features never reach."""

    def _prepare_model(self, peft_config: PromptOptions, model: nn.Module) -> None:
        slots = list(slots_by_name(model).values())
        stages = {slot.stage.index for slot in slots if isinstance(slot, EntrySlot)}
        peft_config.resolve_prompt_depth(has_stages=len(stages) > 1)
        super()._prepare_model(peft_config, model)
        prompted = [slot for slot in self._slots.values() if isinstance(slot, EntrySlot)]
        if PromptLayer in self.layers_of(peft_config):
            check_prompted(peft_config, [slot.layer_index for slot in prompted])
        if not peft_config.use_bank or not prompted:
            return
        last = next((slot.stage for slot in slots if isinstance(slot, ReadoutSlot)), None)
        if last is None:
            for name, possible in (("query", "encoder"), ("bank_update", "none")):
                if (value := getattr(peft_config, name)) != possible:
                    raise ValueError(
                        f"`{name}`={value!r} needs a backbone of point_peft_hf, but {type(model).__name__} is none. "
                        f"Use {possible!r}."
                    )
        elif peft_config.bank_update != "none" and peft_config.query == "tokens" and last.first_layer == 0:
            raise ValueError(
                f"`bank_update`={peft_config.bank_update!r} would change nothing: with `query`='tokens' the bank "
                f"holds the tokens that enter the blocks, which are frozen in {type(model).__name__}. Set "
                "`query`='encoder'."
            )
        if not any(slot.stage.is_last for slot in prompted):
            users = [s.layer_index for s in slots if isinstance(s, EntrySlot) and s.stage.is_last]
            raise ValueError(
                f"Only the blocks {users} of this backbone use a bank, and prompts are in the blocks "
                f"{[slot.layer_index for slot in prompted]}. Pass `prompt_depth=None` (got "
                f"{peft_config.prompt_depth}) or other `layers_to_transform`, or `use_bank=False`."
            )


@register_method("point_prior_prompt", PointPriorPromptConfig)
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

    layer_classes = PROMPT_LAYERS


__all__ = [
    "PROMPT_LAYERS",
    "PointPriorBank",
    "PointPriorPromptConfig",
    "PointPriorPromptModel",
    "PromptTunerMixin",
    "RetrievalReport",
    "build_point_prior_bank",
    "compress_bank",
    "explain_retrieval",
    "retrieve",
    "set_point_prior_bank",
]
