"""From a file to the names of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn

from ..auto import AutoPointPeftModel
from ..data import PointCloudProcessor
from ..data.scenes import SceneProcessor
from ..io.files import CONFIG_NAME, find_file, read_json
from ..models import (
    AutoModelForPointCloudClassification,
    AutoModelForPointCloudSegmentation,
    AutoModelForPointCloudSemanticSegmentation,
)
from ..models.segmentation import PointSegmentationMixin
from ..scenes import ScenePredictor
from ..tuners.targets import SCENE_MODEL_TYPES
from .part_predictor import PartPredictor


class Predictor:
    """A model with its preprocessing.

    Args:
        model: The classifier; its configuration names the classes.
        processor: Prepares the clouds.
    """

    def __init__(self, model: nn.Module, processor: PointCloudProcessor):
        self.model = model.eval()
        self.processor = processor
        self.class_names = [model.config.id2label[index] for index in range(model.config.num_labels)]

    @classmethod
    def from_pretrained(cls, adapter: str, model: str | None = None, device: str = "cpu") -> Predictor:
        """Load what `examples/train.py` saved.

        Args:
            adapter: Folder or Hub repository: an adapter, or a whole model from full fine-tuning.
            model: Backbone: name of a shipped one, a folder or a Hub repository; default: the one the adapter names.
            device: Where to predict.

        Returns:
            The predictor.

        Raises:
            ValueError: If something that is needed to predict is missing, or if adapter and backbone do not fit.
        """
        predictor = load_predictor(adapter, model, device)
        if not isinstance(predictor, cls):
            raise ValueError(f"The model in {adapter} tells parts apart, not classes. Load it with `load_predictor`.")
        return predictor

    @torch.no_grad()
    def predict(self, cloud: Any, top: int = 1, *, drop_invalid: bool = False) -> list[tuple[str, float]]:
        """Classify one cloud.

        Args:
            cloud: A file, or coordinates of shape `(num_points, 3)`.
            top: Number of classes to return.
            drop_invalid: Leave out points with NaN or infinite coordinates instead of refusing the cloud.

        Returns:
            The `top` most probable classes with their probabilities, the most probable first.

        Raises:
            ValueError: If the cloud cannot be read or used.
        """
        device = next(self.model.parameters()).device
        points = self.processor(cloud, drop_invalid=drop_invalid)["points"].to(device)
        probabilities = self.model(points).logits.float().softmax(dim=-1)[0]
        values, indices = probabilities.topk(min(top, len(self.class_names)))
        return [(self.class_names[int(index)], float(value)) for value, index in zip(values, indices, strict=True)]

    def check_classes(self, class_names: Sequence[str]) -> None:
        """Refuse data of other classes, on which every number would be wrong.

        Args:
            class_names: Names of the classes of the data, in the order of their labels.

        Raises:
            ValueError: If they are not those of the model.
        """
        if list(class_names) != self.class_names:
            raise ValueError(
                f"{self.model.name_or_path or 'The model'} knows the {len(self.class_names)} classes "
                f"{_few(self.class_names)}, but the data have {len(class_names)}: {_few(class_names)}. Pass the data "
                "that it was trained on with --data."
            )

    @torch.no_grad()
    def predict_classes(self, clouds: Sequence[Any], batch_size: int, *, drop_invalid: bool = False) -> np.ndarray:
        """Classify many clouds.

        Args:
            clouds: Files, or coordinates of shape `(num_points, 3)`.
            batch_size: Clouds at a time.
            drop_invalid: Leave out points with NaN or infinite coordinates instead of refusing their cloud.

        Returns:
            The numbers of their classes, of shape `(num_clouds,)`.

        Raises:
            ValueError: If a cloud cannot be read or used.
        """
        device = next(self.model.parameters()).device
        predictions = []
        for start in range(0, len(clouds), batch_size):
            chosen = clouds[start : start + batch_size]
            points = self.processor(chosen, drop_invalid=drop_invalid)["points"].to(device)
            predictions.append(self.model(points=points).logits.argmax(dim=-1).cpu())
        return torch.cat(predictions).numpy()


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def load_trained(adapter: str, model: str | None = None) -> nn.Module:
    """Load the model of a task that training saved.

    Args:
        adapter: Folder or Hub repository: an adapter, or a whole model from full fine-tuning.
        model: Backbone: name of a shipped one, a folder or a Hub repository; default: the one the adapter names.

    Returns:
        The model.

    Raises:
        ValueError: If something is missing, or if adapter and backbone do not fit.
    """
    if find_file(adapter, CONFIG_NAME) is not None:
        return AutoPointPeftModel.from_pretrained(adapter, backbone=model)
    config = find_file(adapter, "config.json")
    if config is None:
        raise ValueError(
            f"{adapter} holds neither an adapter ({CONFIG_NAME}) nor a model (config.json). Pass the folder that "
            "training wrote."
        )
    architectures = read_json(config).get("architectures") or [""]
    if str(architectures[0]).endswith("ForSemanticSegmentation"):
        return AutoModelForPointCloudSemanticSegmentation.from_pretrained(adapter)
    if str(architectures[0]).endswith("ForSegmentation"):
        return AutoModelForPointCloudSegmentation.from_pretrained(adapter)
    return AutoModelForPointCloudClassification.from_pretrained(adapter)


def load_predictor(
    adapter: str, model: str | None = None, device: str = "cpu"
) -> Predictor | PartPredictor | ScenePredictor:
    """Load what `examples/train.py` saved, whichever its task was.

    Args:
        adapter: Folder or Hub repository: an adapter, or a whole model from full fine-tuning.
        model: Backbone: name of a shipped one, a folder or a Hub repository; default: the one the adapter names.
        device: Where to predict.

    Returns:
        A predictor of classes, of parts, or of the classes of all points of a scene.

    Raises:
        ValueError: If something that is needed to predict is missing, or if adapter and backbone do not fit.
    """
    trained = load_trained(adapter, model).to(device)
    backbone = trained.get_base_model() if isinstance(trained, PeftModel) else trained
    if backbone.config.model_type in SCENE_MODEL_TYPES and hasattr(backbone, "semantic_head"):
        return ScenePredictor(trained, SceneProcessor.from_pretrained(adapter))
    predictor_class = PartPredictor if isinstance(backbone, PointSegmentationMixin) else Predictor
    return predictor_class(trained, PointCloudProcessor.from_pretrained(adapter))
