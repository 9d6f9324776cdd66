"""What an adapter has to show of its work on a cloud, in terms that know no method.

A layer returns these from [`~point_peft_hf.tuners.base.SlotLayer.explain`]; whoever draws them needs to know nothing
of the method. They are about one cloud, so nothing in them has a batch dimension, and they take tensors of any device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass
class Places:
    """Places in a cloud that belong together, such as centres that an adapter chose or tokens that it inserted.

    Attributes:
        name: What one of them is, for the legend.
        coordinates: Of shape `(num_places, 3)`, in the unit of the cloud.
        labels: Class of the training cloud that each stands for, of shape `(num_places,)`, -1 where unknown; default:
            they stand for none.
        on_top: Whether they are drawn over the points that hide them, such as for places inside of an object.

    Raises:
        ValueError: If the shapes do not fit.
    """

    name: str
    coordinates: np.ndarray
    labels: np.ndarray | None = None
    on_top: bool = False

    def __post_init__(self):
        self.coordinates = _array(self.coordinates, f"`coordinates` of {self.name!r}", (None, 3))
        if self.labels is not None:
            self.labels = _array(self.labels, f"`labels` of {self.name!r}", (len(self.coordinates),))


@dataclass
class Picture:
    """A picture of a cloud: what is marked in it, and what it is coloured by.

    Attributes:
        name: What it shows.
        places: What is marked.
        values: Numbers to colour the cloud by, of shape `(num_values,)`; default: it has one colour.
        coordinates: Where the values belong, of shape `(num_values, 3)`, in the unit of the cloud, for example the
            centres of the tokens; a point gets the value of the nearest.
        unit: Unit of the values.

    Raises:
        ValueError: If the shapes do not fit.
    """

    name: str
    places: Sequence[Places] = ()
    values: np.ndarray | None = None
    coordinates: np.ndarray | None = None
    unit: str = ""

    def __post_init__(self):
        if (self.values is None) != (self.coordinates is None):
            raise ValueError(f"The picture {self.name!r} must have both `values` and `coordinates`, or neither.")
        if self.values is not None:
            self.coordinates = _array(self.coordinates, f"`coordinates` of {self.name!r}", (None, 3))
            self.values = _array(self.values, f"`values` of {self.name!r}", (len(self.coordinates),))


@dataclass
class References:
    """Training clouds that a prediction draws from, those that count most first.

    All have the shape `(num_references,)`.

    Attributes:
        name: Where they come from.
        labels: Class of each, -1 where unknown.
        sample_ids: Number of each in the data set, -1 where unknown.
        similarities: How similar each is to the cloud.
        weights: How much each counts; all that count add up to 1.

    Raises:
        ValueError: If the shapes do not fit.
    """

    name: str
    labels: np.ndarray
    sample_ids: np.ndarray
    similarities: np.ndarray
    weights: np.ndarray

    def __post_init__(self):
        count = len(self.labels)
        for field in ("labels", "sample_ids", "similarities", "weights"):
            setattr(self, field, _array(getattr(self, field), f"`{field}` of {self.name!r}", (count,)))


def _array(values: Any, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """Values as an array on the CPU, floats as float32."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    values = np.asarray(values)
    if values.ndim != len(shape) or any(e not in (None, g) for e, g in zip(shape, values.shape, strict=True)):
        expected = tuple("any number" if size is None else size for size in shape)
        raise ValueError(
            f"{name} must have shape {expected}, got {values.shape}. They are of one cloud, without a batch dimension."
        )
    return values
