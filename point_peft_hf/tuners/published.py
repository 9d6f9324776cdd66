"""Published files of other methods: what their readers make of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from .config import PointTunerConfig


class PublishedAdapter(NamedTuple):
    """What a published file of a method on a point transformer consists of.

    Attributes:
        config: Configuration of the adapter.
        weights: Its tensors, by their names in the adapter's own file.
        base: What is left, by the published names of the plain backbone.
        switches: In words, the fields that were set other than by default to compute what the published code does.
    """

    config: PointTunerConfig
    weights: Mapping[str, torch.Tensor]
    base: Mapping[str, torch.Tensor]
    switches: tuple[str, ...]
