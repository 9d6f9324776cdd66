"""The processor of scenes: points of any number to one batch of voxels, as the model was trained on them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedConfig

from ..errors import PointCloudError
from ..part_files import UNLABELLED
from ..processing import StoredProcessor
from .reading import read_scene
from .scene import Scene
from .voxels import voxelize

AnyScene = str | os.PathLike | Scene | Mapping[str, Any] | np.ndarray | Tensor
_FEATURES = ("coordinates", "colors", "normals")
_SHIFTS = ("center", "none", "unit_sphere")
_COLOR_SCALES = ("unit", "signed")
# How the clouds of the published models were prepared.
PUBLISHED_PREPARATION: dict[str, dict[str, Any]] = {
    "sonata": {},
    "concerto": {"optional_features": ("colors", "normals")},
    "utonia": {"grid_size": 0.01, "scale": 0.5, "optional_features": ("colors", "normals")},
    "ptv3": {"feature_names": ("colors", "normals"), "color_scale": "signed"},
}


class SceneProcessor(StoredProcessor):
    """Turn scenes into the voxels that a model takes, in the way stored in its `preprocessor_config.json`.

    A scene is shifted and scaled, and the first point of each voxel is kept. What comes out for a scene does not
    depend on the others in the call. `PUBLISHED_PREPARATION` has the fields of the published models.

    Args:
        grid_size: Edge of a voxel, in metres after `scale`.
        feature_names: What the features of a voxel are, in this order: `"coordinates"` (after shift and scale),
            `"colors"`, `"normals"`; three numbers each.
        optional_features: Those of them that some training scenes lacked, so that the model can do without.
        color_scale: `"unit"` gives colours from 0 to 1 (Sonata, Concerto, Utonia), `"signed"` from -1 to 1 (Point
            Transformer V3).
        shift: `"center"` moves the middle of the bounding box in x and y, and its lowest z, to 0; `"none"` changes
            nothing (Utonia outdoors: vehicle at the origin, road at z = 0); `"unit_sphere"` moves the centroid to 0
            and scales the farthest point to distance 1 (Utonia, single objects), before `scale`.
        scale: Factor of the coordinates (Utonia: the granularity).
    """

    model_input_names = ["coordinates", "grid_coordinates", "features", "batch_index"]

    def __init__(
        self,
        grid_size: float = 0.02,
        feature_names: Sequence[str] = _FEATURES,
        optional_features: Sequence[str] = (),
        color_scale: str = "unit",
        shift: str = "center",
        scale: float = 1.0,
        **kwargs: Any,
    ):
        names, optional = list(feature_names), list(optional_features)
        fields = {
            "grid_size": grid_size,
            "feature_names": names,
            "optional_features": optional,
            "color_scale": color_scale,
            "shift": shift,
            "scale": scale,
        }
        super().__init__(fields, {"shift": _SHIFTS, "color_scale": _COLOR_SCALES}, kwargs)
        for name, value in (("grid_size", grid_size), ("scale", scale)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a number above 0, got {value!r}")
        if not names or len(set(names)) < len(names) or not set(names) <= set(_FEATURES):
            raise ValueError(f"feature_names must be one or more of {', '.join(_FEATURES)}, each once, got {names}")
        if not set(optional) <= {"colors", "normals"}:
            raise ValueError(f"optional_features can be colors and normals, got {optional}")
        self.grid_size, self.scale = float(grid_size), float(scale)
        self._said: set[str] = set()

    @property
    def voxel_size(self) -> float:
        """Edge of a voxel before `scale`: in metres, unless scenes are scaled to the unit sphere."""
        return self.grid_size / self.scale

    def __call__(
        self,
        scenes: AnyScene | Sequence[AnyScene],
        return_tensors: str | None = "pt",
        *,
        return_inverse: bool = False,
        drop_invalid: bool = False,
    ) -> BatchFeature:
        """Process one scene or a batch.

        Args:
            scenes: A path, a [`Scene`], a mapping with `points` and, where there are any, `colors`, `normals` and
                `labels`, coordinates of shape `(num_points, 3)`, or a list of these.
            return_tensors: `"pt"` for tensors or `"np"` for arrays.
            return_inverse: Also give `inverse`, the voxel of each point: `logits[inverse]` are those of all points,
                scene by scene.
            drop_invalid: Leave out points with NaN or infinite numbers instead of refusing the scene.

        Returns:
            Packed over the scenes, with N voxels in all: `coordinates`, float32, of shape `(N, 3)`;
            `grid_coordinates`, int64, `(N, 3)`; `features`, float32, `(N, num_features)`; `batch_index`, int64,
            `(N,)`; `labels`, int64, `(N,)`, -100 where there is none, if a scene has labels; and `inverse`, int64, of
            shape `(num_points,)`, if asked for.

        Raises:
            PointCloudError: If a scene cannot be read or used; the message names its file or its place in the list.
        """
        if return_tensors not in ("pt", "np", None):
            raise ValueError(f"return_tensors must be 'pt' or 'np', got {return_tensors!r}")
        if not isinstance(scenes, list | tuple):
            scenes = [scenes]
        if len(scenes) == 0:
            raise PointCloudError("scenes is empty; give at least one")
        prepared = []
        for index, scene in enumerate(scenes):
            if isinstance(scene, str | os.PathLike):
                scene = read_scene(scene, drop_invalid=drop_invalid)
            else:
                scene = Scene.from_any(scene, f"scene {index}", drop_invalid)
            prepared.append(self.prepare(scene))
        return pack(prepared, return_inverse=return_inverse, as_tensors=return_tensors == "pt")

    def prepare(self, scene: Scene, known_absent: Collection[str] = ()) -> dict[str, np.ndarray]:
        """Process one scene that is known to be good, such as a tile of one.

        Args:
            scene: The scene, of one point or more.
            known_absent: Features that may be absent without a warning, as the augmentation has dropped them.

        Returns:
            The arrays of `__call__` for this scene alone, without `batch_index`; with `inverse`, and with `labels`
            where the scene has them.

        Raises:
            PointCloudError: If it has more than 65,536 cells along an axis.
        """
        coordinates = self._place(scene)
        grid, first, inverse = voxelize(coordinates, self.grid_size, scene.name)
        arrays = {
            "coordinates": coordinates[first],
            "grid_coordinates": grid,
            "features": self._features(scene, coordinates, first, known_absent),
            "inverse": inverse,
        }
        if scene.labels is not None:
            arrays["labels"] = scene.labels[first]
        return arrays

    def _place(self, scene: Scene) -> np.ndarray:
        """Shift and scale the points; `(num_points, 3)`, float32."""
        points = scene.points
        if self.shift == "none":
            points = points + scene.origin
            far = float(np.abs(points).max())
            if far * np.finfo(np.float32).eps > self.voxel_size / 2:
                raise PointCloudError(
                    f"{scene.name}: its coordinates go up to {far:.6g}, where float32 cannot separate voxels of "
                    f"{self.voxel_size:g}; with shift 'none' coordinates are relative to the vehicle: shift "
                    "them, or use shift 'center'"
                )
        elif self.shift == "center":
            low, high = points.min(axis=0), points.max(axis=0)
            points = points - np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]], dtype=np.float32)
        else:
            points = points - points.mean(axis=0, dtype=np.float64)
            radius = np.sqrt((points**2).sum(axis=1).max())
            if not radius > 0:
                raise PointCloudError(
                    f"{scene.name}: all its points are in one place, so it cannot be scaled to the unit sphere"
                )
            points = points / radius
        return (points * self.scale if self.scale != 1 else points).astype(np.float32, copy=False)

    def _features(
        self, scene: Scene, coordinates: np.ndarray, first: np.ndarray, known_absent: Collection[str]
    ) -> np.ndarray:
        """Collect the features of the voxels; `(num_voxels, num_features)`, float32."""
        parts = []
        for name in self.feature_names:
            values = coordinates if name == "coordinates" else getattr(scene, name)
            if values is None:
                if name not in known_absent:
                    self._say_absent(name, scene.name)
                parts.append(np.zeros((len(first), 3), dtype=np.float32))
                continue
            values = values[first].astype(np.float32)
            if name == "colors":
                values = values / 255 if self.color_scale == "unit" else values / 127.5 - 1
            parts.append(values)
        return np.concatenate(parts, axis=1)

    def _say_absent(self, name: str, scene: str) -> None:
        if name in self._said:
            return
        self._said.add(name)
        words = "colours" if name == "colors" else name
        if name in self.optional_features:
            trained = f"The model was trained on scenes with and without {words}."
        else:
            trained = f"The model was trained on scenes with {words} only, and may do worse."
        warnings.warn(
            f"{scene} has no {words}; zeros take their place, here and in other scenes without them. {trained}",
            stacklevel=5,
        )


def pack(
    prepared: Sequence[Mapping[str, np.ndarray]], *, return_inverse: bool = False, as_tensors: bool = True
) -> BatchFeature:
    """Pack what [`SceneProcessor.prepare`] gives of some scenes into a batch, as [`SceneProcessor.__call__`].

    With `return_inverse` it keeps `inverse`, counted over the batch.
    """
    sizes = [len(arrays["coordinates"]) for arrays in prepared]
    data = {
        name: np.concatenate([arrays[name] for arrays in prepared])
        for name in ("coordinates", "grid_coordinates", "features")
    }
    data["batch_index"] = np.repeat(np.arange(len(sizes)), sizes)
    pairs = list(zip(prepared, sizes, np.cumsum([0, *sizes[:-1]]), strict=True))
    if any("labels" in arrays for arrays in prepared):
        data["labels"] = np.concatenate([part.get("labels", np.full(size, UNLABELLED)) for part, size, _ in pairs])
    if return_inverse:
        data["inverse"] = np.concatenate([part["inverse"] + start for part, _, start in pairs])
    return BatchFeature({name: torch.from_numpy(array) for name, array in data.items()} if as_tensors else data)


def register_scene_processor(config_class: type[PreTrainedConfig]) -> None:
    """Let `AutoProcessor` and `AutoFeatureExtractor` find the processor for the models of a configuration.

    Args:
        config_class: Configuration class of the models.
    """
    SceneProcessor.register(config_class)
