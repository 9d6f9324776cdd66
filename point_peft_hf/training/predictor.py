"""From a file to the names of its classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..adapter_files import CONFIG_NAME, find_file
from ..data import PointCloudProcessor
from ..hub import AutoPointPeftModel
from ..models import AutoModelForPointCloudClassification


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
        if find_file(adapter, CONFIG_NAME) is not None:
            classifier = AutoPointPeftModel.from_pretrained(adapter, backbone=model)
        elif find_file(adapter, "config.json") is not None:
            classifier = AutoModelForPointCloudClassification.from_pretrained(adapter)
        else:
            raise ValueError(
                f"{adapter} holds neither an adapter ({CONFIG_NAME}) nor a model (config.json). Pass the folder that "
                "training wrote."
            )
        return cls(classifier.to(device), PointCloudProcessor.from_pretrained(adapter))

    @torch.no_grad()
    def predict(self, cloud: Any, top: int = 1) -> list[tuple[str, float]]:
        """Classify one cloud.

        Args:
            cloud: A file, or coordinates of shape `(num_points, 3)`.
            top: Number of classes to return.

        Returns:
            The `top` most probable classes with their probabilities, the most probable first.

        Raises:
            ValueError: If the cloud cannot be read or used.
        """
        device = next(self.model.parameters()).device
        points = self.processor(cloud)["points"].to(device)
        probabilities = self.model(points).logits.float().softmax(dim=-1)[0]
        values, indices = probabilities.topk(min(top, len(self.class_names)))
        return [(self.class_names[int(index)], float(value)) for value, index in zip(values, indices, strict=True)]
