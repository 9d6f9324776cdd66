"""The processor: files, arrays and tensors of any size to one batch of points, as the model was trained on them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoProcessor, BatchFeature, FeatureExtractionMixin, PreTrainedConfig

from ..ops import farthest_point_sample
from .errors import PointCloudError, shorten
from .formats.arrays import looks_transposed
from .readers import as_array, check_size, finite_rows, read_point_cloud

Cloud = str | os.PathLike | np.ndarray | Tensor
_NORMALIZE = ("unit_sphere", "center", "none")
_UP_AXES = ("x", "y", "z")
_SAMPLING = ("random", "fps", "first")
# Other keys that transformers writes into a preprocessor_config.json.
_FOREIGN_KEYS = ("feature_extractor_type", "processor_class", "auto_map", "transformers_version", "_commit_hash")
# Farthest point sampling costs one pass over the cloud for each sample, so bigger clouds are thinned at random first.
FPS_MAX_POINTS = 32768


class StoredProcessor(FeatureExtractionMixin):
    """What all processors share: fields that are checked, and stored in `preprocessor_config.json`.

    `allowed` are the values that some of the fields can have, `others` what else the file has.
    """

    def __init__(self, fields: Mapping[str, Any], allowed: Mapping[str, Sequence[str]], others: Mapping[str, Any]):
        unknown = sorted(set(others) - set(_FOREIGN_KEYS))
        if unknown:
            raise ValueError(
                f"{type(self).__name__} has no field {', '.join(unknown)}; its fields are {', '.join(fields)}"
            )
        super().__init__(**{key: value for key, value in others.items() if key == "auto_map"})
        for name, values in allowed.items():
            if fields[name] not in values:
                raise ValueError(f"{name} must be one of {', '.join(values)}, got {fields[name]!r}")
        for name, value in fields.items():
            setattr(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as a dictionary, with the class names that the Auto classes look for."""
        fields = {name: value for name, value in super().to_dict().items() if not name.startswith("_")}
        return {**fields, "processor_class": type(self).__name__}

    @classmethod
    def register(cls, config_class: type[PreTrainedConfig]) -> None:
        """Let `AutoProcessor` and `AutoFeatureExtractor` find the processor for the models of a configuration."""
        AutoProcessor.register(config_class, cls, exist_ok=True)
        AutoFeatureExtractor.register(config_class, cls, exist_ok=True)


class PointCloudProcessor(StoredProcessor):
    """Turn clouds into the `points` that a model takes, in the way stored in its `preprocessor_config.json`.

    Each cloud is turned so that y is up, sampled to `num_points`, centred and scaled, and, if it has fewer points,
    filled up by repeating them. What comes out for a cloud does not depend on the others in the call.

    Args:
        num_points: Points of each cloud that comes out.
        normalize: `"unit_sphere"` moves the centroid to the origin and scales the farthest point to distance 1;
            `"center"` only moves, and keeps the unit (metres stay metres); `"none"` changes nothing.
        up_axis: Axis that is up in the input, `"x"`, `"y"` or `"z"`; the output has y up, as ModelNet40 and ShapeNet.
        sampling: `"random"` draws points, `"fps"` takes the farthest ones (even, slower, always the same), `"first"`
            takes the first ones (for files whose points are ordered by such a sampling).
        seed: Seed of `"random"`, the same for each cloud, so that a file always gives the same points. None draws anew
            in each call from the global generator of torch, as wanted for training.
    """

    model_input_names = ["points"]

    def __init__(
        self,
        num_points: int = 1024,
        normalize: str = "unit_sphere",
        up_axis: str = "y",
        sampling: str = "random",
        seed: int | None = 0,
        **kwargs: Any,
    ):
        fields = {
            "num_points": num_points,
            "normalize": normalize,
            "up_axis": up_axis,
            "sampling": sampling,
            "seed": seed,
        }
        super().__init__(fields, {"normalize": _NORMALIZE, "up_axis": _UP_AXES, "sampling": _SAMPLING}, kwargs)
        if isinstance(num_points, bool) or not isinstance(num_points, int) or num_points < 1:
            raise ValueError(f"num_points must be an integer of at least 1, got {num_points!r}")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
            raise ValueError(f"seed must be None or an integer of at least 0, got {seed!r}")

    def __call__(
        self,
        clouds: Cloud | Sequence[Cloud],
        return_tensors: str | None = "pt",
        *,
        part_labels: Sequence[np.ndarray | Tensor] | None = None,
        generator: torch.Generator | None = None,
        drop_invalid: bool = False,
    ) -> BatchFeature:
        """Process one cloud or a batch.

        Args:
            clouds: A path, an array or tensor of shape `(num_points, 3 or more)` (columns after x, y, z are left out),
                a list of such clouds of any sizes, or an array or tensor of shape
                `(batch_size, num_points, 3 or more)`.
            return_tensors: `"pt"` for a tensor, on the device of the input, or `"np"` for an array.
            part_labels: A label for each point of each cloud, shape `(num_points,)` each; they follow the points.
            generator: Source of randomness of `"random"` sampling, on the CPU; it takes precedence over `seed`.
            drop_invalid: Leave out points with NaN or infinite coordinates instead of refusing the cloud.

        Returns:
            `points`, float32, of shape `(batch_size, num_points, 3)`; and `part_labels`, int64, of shape
            `(batch_size, num_points)` where they were given.

        Raises:
            PointCloudError: If a cloud cannot be read or used; the message names its file or its place in the list.
        """
        if return_tensors not in ("pt", "np", None):
            raise ValueError(f"return_tensors must be 'pt' or 'np', got {return_tensors!r}")
        names, batch, kept = self._as_tensors(clouds, drop_invalid)
        if part_labels is not None and len(part_labels) != len(batch):
            raise PointCloudError(
                f"part_labels must be given for each of the {len(batch)} clouds, got {len(part_labels)}"
            )
        chosen = self._sample(batch, generator)
        pairs = [self._process(*triple) for triple in zip(names, batch, chosen, strict=True)]
        points, chosen = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        data = {"points": torch.stack(points)}
        if part_labels is not None:
            rows = zip(names, part_labels, map(len, batch), kept, chosen, strict=True)
            data["part_labels"] = torch.stack([_gather_labels(*row) for row in rows])
        if return_tensors != "pt":
            data = {key: value.cpu().numpy() for key, value in data.items()}
        return BatchFeature(data)

    def _as_tensors(
        self, clouds: Cloud | Sequence[Cloud], drop_invalid: bool
    ) -> tuple[list[str], list[Tensor], list[Tensor | None]]:
        """Give names of the clouds for messages, their finite points, and which points these are, None for all."""
        if isinstance(clouds, str | os.PathLike):
            clouds = [clouds]
        elif isinstance(clouds, np.ndarray | Tensor):
            if clouds.ndim not in (2, 3):
                raise PointCloudError(
                    "clouds must be of shape (num_points, 3) or (batch_size, num_points, 3), got "
                    f"{tuple(clouds.shape)}"
                )
            clouds = [clouds] if clouds.ndim == 2 else list(clouds)
        elif isinstance(clouds, dict) or not hasattr(clouds, "__len__"):
            raise PointCloudError(
                f"clouds must be a path, an array, a tensor, or a list of these, got {type(clouds).__name__}"
            )
        if len(clouds) == 0:
            raise PointCloudError("clouds is empty; give at least one")
        if isinstance(clouds[0], list | tuple) and clouds[0] and isinstance(clouds[0][0], int | float):
            clouds = [clouds]  # one cloud as nested lists
        names, tensors, kept = [], [], []
        for index, cloud in enumerate(clouds):
            is_file, keep = isinstance(cloud, str | os.PathLike), None
            name = str(cloud) if is_file else f"cloud {index}"
            if is_file:
                cloud = torch.from_numpy(read_point_cloud(cloud, drop_invalid=drop_invalid))
            else:
                cloud = _as_tensor(cloud, name)
            if not bool(torch.isfinite(cloud).all()):
                keep = torch.from_numpy(finite_rows(as_array(cloud), name, drop_invalid)).to(cloud.device)
                cloud = cloud[keep]
            check_size(len(cloud), name)
            names.append(name)
            tensors.append(cloud)
            kept.append(keep)
        if len({tensor.device for tensor in tensors}) > 1:
            raise PointCloudError(f"clouds are on several devices: {sorted({str(t.device) for t in tensors})}")
        return names, tensors, kept

    def _process(self, name: str, cloud: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Process the chosen points of a cloud; also give the index of the input point of each output point."""
        # index_select, as indexing with a tensor is many times slower on the CPU with several threads.
        points = cloud.index_select(0, chosen)
        if self.up_axis == "z":
            points = torch.stack([points[:, 0], points[:, 2], -points[:, 1]], dim=1)
        elif self.up_axis == "x":
            points = torch.stack([-points[:, 1], points[:, 0], points[:, 2]], dim=1)
        if self.normalize != "none":
            points = points - points.mean(dim=0)
        if self.normalize == "unit_sphere":
            radius = points.norm(dim=1).max()
            if not radius > 0:
                raise PointCloudError(
                    f"{name}: all its points are in one place, so it cannot be scaled to the unit sphere"
                )
            points = points / radius
        points = points.float()
        if len(points) < self.num_points:
            # After normalising, so that the repeated points do not move the centroid.
            repeat = torch.arange(self.num_points, device=points.device) % len(points)
            points, chosen = points.index_select(0, repeat), chosen.index_select(0, repeat)
        return points, chosen

    def _sample(self, clouds: list[Tensor], generator: torch.Generator | None) -> list[Tensor]:
        """Choose at most `num_points` points of each cloud; int64 indices on the device of the clouds."""
        chosen = []
        for cloud in clouds:
            wanted = self.num_points
            if self.sampling == "fps":
                wanted = max(FPS_MAX_POINTS, wanted)
            if len(cloud) <= wanted or self.sampling == "first":
                chosen.append(torch.arange(min(len(cloud), wanted), device=cloud.device))
            else:
                chosen.append(self._draw(len(cloud), wanted, generator).to(cloud.device))
        if self.sampling != "fps":
            return chosen
        # Clouds of one size are sampled together, as many small steps on a GPU cost as much as many large ones.
        sizes = {len(indices) for indices in chosen if len(indices) > self.num_points}
        for size in sizes:
            places = [place for place, indices in enumerate(chosen) if len(indices) == size]
            points = torch.stack([clouds[place].index_select(0, chosen[place]) for place in places])
            picked = farthest_point_sample((points - points.mean(dim=1, keepdim=True)).float(), self.num_points)
            for place, indices in zip(places, picked, strict=True):
                chosen[place] = chosen[place].index_select(0, indices)
        return chosen

    def _draw(self, population: int, number: int, generator: torch.Generator | None) -> Tensor:
        """Draw indices without repetition, the same ones for the same seed."""
        if generator is None and self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed)
        device = "cpu" if generator is None else generator.device
        return torch.randperm(population, generator=generator, device=device)[:number]


def _as_tensor(cloud: Any, name: str) -> Tensor:
    """Check the type and the shape of a cloud, and take its coordinates."""
    if not isinstance(cloud, Tensor):
        try:
            cloud = np.asarray(cloud)
        except ValueError:
            raise PointCloudError(
                f"{name}: rows of different lengths; give an array of shape (num_points, 3)"
            ) from None
        if cloud.dtype.kind not in "fiu":
            raise PointCloudError(f"{name}: must be of real numbers, got {cloud.dtype}: {shorten(cloud)}")
        native = np.ascontiguousarray(cloud.astype(cloud.dtype.newbyteorder("="), copy=False))
        # PyTorch knows no memory that must not be written to, such as that of a file.
        cloud = torch.from_numpy(native if native.flags.writeable else native.copy())
    if cloud.dim() != 2 or cloud.shape[1] < 3 or looks_transposed(tuple(cloud.shape)):
        hint = "; it looks transposed, coordinates come last" if looks_transposed(tuple(cloud.shape)) else ""
        raise PointCloudError(f"{name}: must be of shape (num_points, 3), got {tuple(cloud.shape)}{hint}")
    if cloud.dtype.is_complex or cloud.dtype == torch.bool:
        raise PointCloudError(f"{name}: must be of real numbers, got {cloud.dtype}")
    cloud = cloud[:, :3].detach()
    if cloud.dtype in (torch.float16, torch.bfloat16):
        return cloud.float()
    return cloud if cloud.is_floating_point() else cloud.double()


def _gather_labels(name: str, labels: Any, size: int, kept: Tensor | None, chosen: Tensor) -> Tensor:
    """Give the labels of the points that were kept and chosen."""
    labels = torch.as_tensor(labels)
    if labels.dim() != 1 or len(labels) != (size if kept is None else len(kept)):
        raise PointCloudError(f"{name}: part_labels must be one a point, got shape {tuple(labels.shape)}")
    if kept is not None:
        labels = labels[kept.to(labels.device)]
    return labels.long().index_select(0, chosen.to(labels.device))


def register_processor(config_class: type[PreTrainedConfig]) -> None:
    """Let `AutoProcessor` and `AutoFeatureExtractor` find the processor for the models of a configuration.

    Args:
        config_class: Configuration class of the models.
    """
    PointCloudProcessor.register(config_class)
