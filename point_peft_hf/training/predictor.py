"""From a file to the names of its classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from peft import PeftConfig, PeftModel
from torch import nn

from ..data import PointCloudProcessor
from ..models import AutoModelForPointCloudClassification
from ..pretrained import backbone_folder
from .record import RECORD_NAME


class Predictor:
    """A model with its preprocessing and the names of its classes.

    Args:
        model: The classifier.
        processor: Prepares the clouds.
        class_names: Name of each class.
    """

    def __init__(self, model: nn.Module, processor: PointCloudProcessor, class_names: list[str]):
        self.model = model.eval()
        self.processor = processor
        self.class_names = class_names

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
        record = _read_record(adapter)
        class_names = record.get("class_names")
        if _find(adapter, "adapter_config.json") is None:
            classifier = AutoModelForPointCloudClassification.from_pretrained(adapter)
        else:
            config = PeftConfig.from_pretrained(adapter)
            name = model or config.base_model_name_or_path
            if not name:
                raise ValueError(f"{adapter} does not name its backbone. Pass it: --model.")
            id2label = getattr(config, "id2label", None)
            class_names = class_names or (id2label and [id2label[index] for index in sorted(id2label)])
            if not class_names:
                raise ValueError(
                    f"{adapter} does not name its classes: it has neither {RECORD_NAME} nor an `id2label` in its "
                    "adapter_config.json. Train it with examples/train.py, or load it with PeftModel.from_pretrained."
                )
            backbone = AutoModelForPointCloudClassification.from_pretrained(
                backbone_folder(name), num_labels=len(class_names), ignore_mismatched_sizes=True
            )
            classifier = PeftModel.from_pretrained(backbone, adapter)
        class_names = class_names or [classifier.config.id2label[i] for i in range(classifier.config.num_labels)]
        return cls(classifier.to(device), PointCloudProcessor.from_pretrained(adapter), class_names)

    @torch.no_grad()
    def predict(self, clouds: Any, top: int = 1) -> list[tuple[str, float]]:
        """Classify one cloud.

        Args:
            clouds: A file, or coordinates of shape `(num_points, 3)`.
            top: Number of classes to return.

        Returns:
            The `top` most probable classes with their probabilities, the most probable first.

        Raises:
            ValueError: If the cloud cannot be read or used.
        """
        device = next(self.model.parameters()).device
        points = self.processor(clouds)["points"].to(device)
        probabilities = self.model(points).logits.float().softmax(dim=-1)[0]
        values, indices = probabilities.topk(min(top, len(self.class_names)))
        return [(self.class_names[int(index)], float(value)) for value, index in zip(values, indices, strict=True)]


def _find(folder_or_repository: str, filename: str) -> str | None:
    if Path(folder_or_repository).is_dir():
        path = Path(folder_or_repository) / filename
        return str(path) if path.is_file() else None
    if Path(folder_or_repository).exists() or folder_or_repository.count("/") > 1:
        raise ValueError(f"{folder_or_repository} is no folder of an adapter. Pass the folder that training wrote.")
    try:
        return hf_hub_download(folder_or_repository, filename)
    except EntryNotFoundError:
        return None


def _read_record(folder_or_repository: str) -> dict[str, Any]:
    path = _find(folder_or_repository, RECORD_NAME)
    return json.loads(Path(path).read_text()) if path else {}
