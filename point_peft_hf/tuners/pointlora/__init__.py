"""PointLoRA: low-rank updates of the attention, and tokens selected at several scales (arXiv 2504.16023)."""

from __future__ import annotations

from torch import nn

from ...slots import AdapterSlot
from ..base import SlotTuner
from ..registry import register_method
from ..slot_layer import SlotLayer
from .config import PointLoRAConfig
from .layer import BlockLayer, ProjectionLayer, ReadoutLayer, TokenLayer
from .published import read_published


@register_method("pointlora", PointLoRAConfig)
class PointLoRAModel(SlotTuner):
    """Adds PointLoRA to a backbone (arXiv 2504.16023).

    Example:
        >>> from peft import get_peft_model
        >>> from point_peft_hf import PointLoRAConfig, PointMAEConfig, PointMAEForClassification
        >>> model = get_peft_model(PointMAEForClassification(PointMAEConfig(num_labels=15)), PointLoRAConfig())
    """

    read_published = staticmethod(read_published)
    trains_embedding = True
    layer_classes = (TokenLayer, BlockLayer, ProjectionLayer, ReadoutLayer)

    def _select(
        self, peft_config: PointLoRAConfig, model: nn.Module, slots: dict[str, AdapterSlot]
    ) -> dict[str, tuple[type[SlotLayer], ...]]:
        selected = super()._select(peft_config, model, slots)
        chosen = {layer: [slots[name] for name in selected if layer in selected[name]] for layer in self.layer_classes}
        blocks = {slot.layer_index for slot in chosen[BlockLayer]}
        stages = {slot.stage.index for slot in chosen[TokenLayer]}
        for slot in (*chosen[BlockLayer], *chosen[ProjectionLayer]):
            if slot.layer_index not in blocks or slot.stage.index not in stages:
                raise ValueError(
                    f"PointLoRA needs the slots 'token_slot' and 'entry_slot' of block {slot.layer_index}, whose "
                    "layers hold what the others share. Name 'entry_slot' in `target_modules`, leave both out of "
                    "`exclude_modules`, or pass neither for the default."
                )
        return selected

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args, **kwargs) -> None:
        """Attach an adapter, and pass its layers the others that they share weights with."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        layers = self._own_layers()
        blocks = {layer.slot.layer_index: layer for layer in layers if isinstance(layer, BlockLayer)}
        stages = {layer.slot.stage.index: layer for layer in layers if isinstance(layer, TokenLayer)}
        for layer in layers:
            if isinstance(layer, ProjectionLayer):
                layer.use(blocks[layer.slot.layer_index], stages[layer.slot.stage.index])
