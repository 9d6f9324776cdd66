"""STAG: a side network over the frozen blocks that reads from all of them and acts on the last (arXiv 2502.14142)."""

from __future__ import annotations

from torch import nn

from ...slots import EntrySlot, OutputSlot, ReadoutSlot, TokenSlot
from ..base import SlotTuner, head_name
from ..registry import register_method
from .config import STAGConfig
from .layer import AccumulationLayer, GraphLayer, MeanReadout, SideNetworkLayer
from .published import read_published


@register_method("stag", STAGConfig)
class STAGModel(SlotTuner):
    """Adds STAG to a backbone (arXiv 2502.14142): the one method whose backward pass leaves out half of the blocks.

    Example:
        >>> from peft import get_peft_model
        >>> from point_peft_hf import PointMAEConfig, PointMAEForClassification, STAGConfig
        >>> model = get_peft_model(PointMAEForClassification(PointMAEConfig(num_labels=15)), STAGConfig())
    """

    read_published = staticmethod(read_published)
    layer_classes = (SideNetworkLayer, AccumulationLayer, GraphLayer, MeanReadout)

    def _prepare_model(self, peft_config: STAGConfig, model: nn.Module) -> None:
        super()._prepare_model(peft_config, model)
        slots = self._slots.values()
        stage = next((slot.stage for slot in slots if isinstance(slot, TokenSlot)), None)
        plan = None if stage is None else peft_config.plan(stage)
        for kind, wanted in ((EntrySlot, plan and plan.accumulation), (OutputSlot, plan and plan.graph)):
            if plan is None or {slot.layer_index for slot in slots if isinstance(slot, kind)} != set(wanted):
                raise ValueError(
                    "A STAG adapter needs the token slot, and the entry and output slots of all its blocks, but with "
                    f"`target_modules`={peft_config.target_modules!r} and `exclude_modules`="
                    f"{peft_config.exclude_modules!r} it does not get them from this backbone. Choose blocks by "
                    "`accumulation_layers`, `graph_layers` or `layers_to_transform`."
                )

    def readout_size(self, peft_config: STAGConfig, slot: ReadoutSlot) -> int:
        """Width of the mean over the tokens."""
        return slot.stage.hidden_size

    def frozen_modules(self, peft_config: STAGConfig, model: nn.Module) -> tuple[str, ...]:
        """What is saved besides the head: training the class token would need a backward pass through all blocks."""
        head = head_name(model)
        saved = peft_config.modules_to_save or ()
        if head == "classifier":
            return tuple(name for name in saved if name != head)
        return tuple(name for name in saved if name == "class_token")
