"""Several models on the same weights: shared memory, and shared work on the same clouds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from ..data import PointCloudProcessor
from ..models.layers import original
from ..models.modeling import PointEncoderMixin

# Fields of a configuration that only heads, pre-training or training read: encoders that differ in nothing else
# compute the same.
_NOT_OF_ENCODERS = ("classifier_", "segmentation_", "decoder_", "category_", "label_", "weights_", "transformers_")
_NOT_OF_ENCODERS += ("id2label", "label2id", "num_categories", "problem_type", "architectures", "_name_or_path")
_NOT_OF_ENCODERS += ("attention_dropout", "drop_path_rate", "initializer_range", "mask_ratio")


def share_weights(models: Sequence[nn.Module]) -> int:
    """Let models share the memory of equal frozen weights and statistics, by name in the backbone.

    A module with a trained weight of its own is left alone.

    Args:
        models: Models on one device, with or without adapters, that predict.

    Returns:
        Number of bytes that are no longer needed.
    """
    resident: dict[str, list[torch.Tensor]] = {}
    saved = 0
    for model in models:
        for name, module in model.named_modules():
            if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
                continue
            tensors = {**module._parameters, **module._buffers}
            for key, tensor in tensors.items():
                if tensor is None:
                    continue
                known = resident.setdefault(_backbone_name(f"{name}.{key}"), [])
                kept = next((other for other in known if _are_equal(other, tensor)), None)
                if kept is None:
                    known.append(tensor)
                elif kept is not tensor:
                    setattr(module, key, kept)
                    saved += tensor.numel() * tensor.element_size()
    return saved


def _backbone_name(name: str) -> str:
    """Name of a weight without what adapters put around modules."""
    wrappers = {"base_model", "model", "base_layer", "original_module"}
    return ".".join(part for part in name.split(".") if part not in wrappers)


def _are_equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    same_kind = first.shape == second.shape and first.dtype == second.dtype and first.device == second.device
    return same_kind and type(first) is type(second) and torch.equal(first, second)


class SharedValues:
    """What several models need of the same clouds, computed once: prepared clouds, groups, tokens.

    Models share what their encoders compute alike: groups of the same configuration, and tokens that leave modules
    with the same weights in memory (see [`share_weights`]) and no adapter. Outputs are the same as without, to the
    bit, as long as nothing writes to weights or clouds meanwhile. Use one for the adapters that answer on the same
    clouds, in one thread, and let go of it then: it holds what it has seen.

        shared = SharedValues()
        answers = {name: predictor.predict("scan.ply", shared=shared) for name, predictor in predictors.items()}
    """

    def __init__(self) -> None:
        self._prepared: dict[tuple[str, int, bool], torch.Tensor] = {}
        self._values: dict[tuple[Any, ...], torch.Tensor] = {}
        # Clouds and weights are known by where they are in memory, so they have to stay there.
        self._held: dict[int, Any] = {}

    def prepare(self, processor: PointCloudProcessor, cloud: Any, *, drop_invalid: bool = False) -> torch.Tensor:
        """The points of a cloud as [`PointCloudProcessor`] gives them.

        Args:
            processor: The processor.
            cloud: A file, or coordinates of shape `(num_points, 3)`; known again as the same object.
            drop_invalid: Leave out points with NaN or infinite coordinates instead of refusing the cloud.

        Returns:
            Points of shape `(1, num_points, 3)`.

        Raises:
            ValueError: If the cloud cannot be read or used.
        """
        self._held[id(cloud)] = cloud
        fields = json.dumps(processor.to_dict(), sort_keys=True, default=str)
        key = (fields, id(cloud), drop_invalid)
        if key not in self._prepared:
            self._prepared[key] = processor(cloud, drop_invalid=drop_invalid)["points"]
        return self._prepared[key]

    def run(self, model: nn.Module, points: torch.Tensor, **inputs: Any) -> Any:
        """Run a model on prepared clouds.

        Args:
            model: The model, as it predicts.
            points: Clouds of shape `(batch_size, num_points, 3)`.
            **inputs: Its other arguments.

        Returns:
            Its output.
        """
        backbone = model.get_base_model() if isinstance(model, PeftModel) else model
        encoder = getattr(backbone, "base_model", None)
        if not isinstance(encoder, PointEncoderMixin):
            return model(points=points, **inputs)
        of_all = (*_identity(points), type(encoder), _encoder_fields(encoder))
        weights: dict[tuple[nn.Module, ...], tuple[Any, ...]] = {}

        def key_of(name: str) -> tuple[Any, ...] | None:
            modules = encoder.modules_behind(name)
            if modules is None:
                return None
            if modules not in weights:
                tensors = [tensor for module in modules for tensor in _pretrained_tensors(module)]
                self._held |= {id(tensor): tensor for tensor in tensors}
                weights[modules] = tuple((id(tensor), tensor._version) for tensor in tensors)
            return name, *of_all, weights[modules]

        values = {key[0]: value for key, value in self._values.items() if key == key_of(key[0])}
        output = model(points=points, precomputed=values, **inputs)
        # The model has added to them.
        for name, value in values.items():
            if (key := key_of(name)) is not None:
                self._values[key] = value
        return output


def run_model(model: nn.Module, points: torch.Tensor, shared: SharedValues | None, **inputs: Any) -> Any:
    """Run a model on prepared clouds, with what others have computed of them if there are others.

    Args:
        model: The model, as it predicts.
        points: Clouds of shape `(batch_size, num_points, 3)`.
        shared: Values that several models share on these clouds.
        **inputs: Its other arguments.

    Returns:
        Its output.
    """
    return model(points=points, **inputs) if shared is None else shared.run(model, points, **inputs)


def _identity(points: torch.Tensor) -> tuple[Any, ...]:
    """What clouds and the precision that they are computed in are known by."""
    kind = points.device.type
    content = points.detach().cpu().contiguous().view(torch.uint8).numpy()
    digest = hashlib.sha256(content).digest()
    precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return digest, points.shape, points.dtype, points.device, precision


def _encoder_fields(encoder: nn.Module) -> str:
    config = encoder.config.to_dict()
    fields = {name: value for name, value in config.items() if not name.startswith(_NOT_OF_ENCODERS)}
    return json.dumps([fields, encoder.config._attn_implementation], sort_keys=True, default=str)


def _pretrained_tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    """Weights and statistics of a module without those of adapters."""
    module = original(module)
    yield from (tensor for tensor in (*module._parameters.values(), *module._buffers.values()) if tensor is not None)
    for child in module.children():
        yield from _pretrained_tensors(child)
