"""From a file to the names of its classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
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
from ..models.configuration import class_names_of
from ..models.segmentation import PointSegmentationMixin
from ..scenes import ScenePredictor
from ..tuners.targets import SCENE_MODEL_TYPES
from .part_predictor import PartPredictor
from .precision import check_precision, in_precision
from .sharing import SharedValues, run_model


class Predictor:
    """A model with its preprocessing.

    Args:
        model: The classifier; its configuration names the classes.
        processor: Prepares the clouds.
        precision: What matrices are multiplied in: "float32" or "bfloat16".
    """

    def __init__(self, model: nn.Module, processor: PointCloudProcessor, precision: str = "float32"):
        self.model = model.eval()
        self.precision = check_precision(precision)
        self.processor = processor
        self.class_names = class_names_of(model.config)

    @classmethod
    def from_pretrained(
        cls, adapter: str, model: str | None = None, device: str = "cpu", precision: str = "float32"
    ) -> Predictor:
        """Load what training saved.

        Args:
            adapter: Folder or Hub repository: an adapter, or a whole model from full fine-tuning.
            model: Backbone: name of a shipped one, a folder or a Hub repository; default: the one the adapter names.
            device: Where to predict.
            precision: What matrices are multiplied in: "float32" or "bfloat16".

        Returns:
            The predictor.

        Raises:
            ValueError: If something that is needed to predict is missing, or if adapter and backbone do not fit.
        """
        predictor = load_predictor(adapter, model, device, precision)
        if not isinstance(predictor, cls):
            raise ValueError(f"The model in {adapter} tells parts apart, not classes. Load it with `load_predictor`.")
        return predictor

    def predict(
        self, cloud: Any, top: int = 1, *, drop_invalid: bool = False, shared: SharedValues | None = None
    ) -> list[tuple[str, float]]:
        """Classify one cloud.

        Args:
            cloud: A file, or coordinates of shape `(num_points, 3)`.
            top: Number of classes to return.
            drop_invalid: Leave out points with NaN or infinite coordinates instead of refusing the cloud.
            shared: Values that several models share on this cloud.

        Returns:
            The `top` most probable classes with their probabilities, the most probable first.

        Raises:
            ValueError: If the cloud cannot be read or used.
        """
        (answer,) = self.predict_many([cloud], 1, drop_invalid=drop_invalid, shared=shared)
        if isinstance(answer, Exception):
            raise answer
        return self.ranked(answer, top)

    def predict_many(
        self,
        clouds: Iterable[Any],
        batch_size: int = 16,
        *,
        drop_invalid: bool = False,
        shared: SharedValues | None = None,
    ) -> Iterator[np.ndarray | Exception]:
        """Classify many clouds in batches; one that cannot be used does not stop the others.

        Args:
            clouds: Files, or coordinates of shape `(num_points, 3)`.
            batch_size: Clouds at a time.
            drop_invalid: Leave out points with NaN or infinite coordinates instead of refusing their cloud.
            shared: Values that several models share on these clouds, in the same batches.

        Yields:
            For each cloud, in order, the probabilities of the classes, float32 of shape `(num_classes,)`, or the error
            that says why it cannot be read or used.
        """
        numbered = enumerate(clouds)
        while chosen := list(islice(numbered, batch_size)):
            answers: list[Any] = []
            for number, cloud in chosen:
                try:
                    answers.append(self._prepared(cloud, drop_invalid, shared))
                except (ImportError, OSError) as error:
                    answers.append(error)
                except ValueError as error:
                    # The processor was given one cloud, and calls an array by its place.
                    answers.append(type(error)(re.sub("^cloud 0:", f"cloud {number}:", str(error))))
            places = [place for place, answer in enumerate(answers) if isinstance(answer, torch.Tensor)]
            if places:
                points = torch.cat([answers[place] for place in places])  # (batch_size, num_points, 3)
                for place, row in zip(places, self._probabilities(points, shared), strict=True):
                    answers[place] = row
            yield from answers

    def ranked(self, probabilities: np.ndarray, top: int = 1) -> list[tuple[str, float]]:
        """The most probable classes.

        Args:
            probabilities: Those of the classes, of shape `(num_classes,)`.
            top: Number of classes to return.

        Returns:
            Names and probabilities, the most probable first; of equal ones that with the lower number.
        """
        order = np.argsort(-probabilities, kind="stable")[:top]
        return [(self.class_names[index], float(probabilities[index])) for index in order]

    def _prepared(self, cloud: Any, drop_invalid: bool, shared: SharedValues | None) -> torch.Tensor:
        if shared is not None:
            return shared.prepare(self.processor, cloud, drop_invalid=drop_invalid)
        return self.processor(cloud, drop_invalid=drop_invalid)["points"]

    @torch.no_grad()
    def _probabilities(self, points: torch.Tensor, shared: SharedValues | None) -> np.ndarray:
        points = points.to(next(self.model.parameters()).device)
        with in_precision(self.precision, points.device):
            logits = run_model(self.model, points, shared).logits
        return logits.float().softmax(dim=-1).cpu().numpy()

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
        numbers = []
        for answer in self.predict_many(clouds, batch_size, drop_invalid=drop_invalid):
            if isinstance(answer, Exception):
                raise answer
            numbers.append(int(answer.argmax()))
        return np.array(numbers)


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
    adapter: str, model: str | None = None, device: str = "cpu", precision: str = "float32"
) -> Predictor | PartPredictor | ScenePredictor:
    """Load what training saved, whichever its task was.

    Args:
        adapter: Folder or Hub repository: an adapter, or a whole model from full fine-tuning.
        model: Backbone: name of a shipped one, a folder or a Hub repository; default: the one the adapter names.
        device: Where to predict.
        precision: What matrices are multiplied in: "float32" or "bfloat16".

    Returns:
        A predictor of classes, of parts, or of the classes of all points of a scene.

    Raises:
        ValueError: If something that is needed to predict is missing, if adapter and backbone do not fit, or for a
            precision that there is not.
    """
    check_precision(precision)
    trained = load_trained(adapter, model).to(device)
    backbone = trained.get_base_model() if isinstance(trained, PeftModel) else trained
    if backbone.config.model_type in SCENE_MODEL_TYPES and hasattr(backbone, "semantic_head"):
        if precision != "float32":
            raise ValueError(
                f"Scenes are labelled in float32; `precision`={precision!r} is for objects. Leave it out."
            )
        return ScenePredictor(trained, SceneProcessor.from_pretrained(adapter))
    predictor_class = PartPredictor if isinstance(backbone, PointSegmentationMixin) else Predictor
    return predictor_class(trained, PointCloudProcessor.from_pretrained(adapter), precision)
