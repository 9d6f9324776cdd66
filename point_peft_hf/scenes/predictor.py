"""From a scan to the classes of all of its points."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import tqdm
from torch import nn

from ..data.scenes import MAX_VOXELS, Scene, SceneProcessor, cut_tiles, read_scene
from ..data.scenes.processing import pack
from ..data.scenes.tiles import Tile
from ..models.configuration import class_names_of
from ..visualization.palette import category_colors, to_rgb
from .writing import write_labelled_scan

_CHUNK = 1 << 20


@dataclass
class ScenePrediction:
    """The classes of a scan.

    Attributes:
        scene: All points of the scan, with their colours where it has any.
        labels: The class of each point, int64, of shape `(num_points,)`.
        confidence: The probability of this class, float32, of shape `(num_points,)`.
        probabilities: Those of all classes, float32, of shape `(num_points, num_classes)`; `None` unless asked for.
        class_names: Names of the classes, by label.
        label_values: The number that each class has in files.
        source: The file that the scan was read from, if it was.
    """

    scene: Scene
    labels: np.ndarray
    confidence: np.ndarray
    probabilities: np.ndarray | None
    class_names: list[str]
    label_values: list[int]
    source: Path | None = None

    def shares(self) -> dict[str, float]:
        """The share of the points that each class has, by its name; classes that do not occur are left out."""
        labels, counts = np.unique(self.labels, return_counts=True)
        return {self.class_names[label]: count / len(self.labels) for label, count in zip(labels, counts, strict=True)}

    def palette(self) -> np.ndarray:
        """A colour for each class, uint8 of shape `(num_classes, 3)`."""
        return (255 * to_rgb(category_colors(len(self.class_names)))).round().astype(np.uint8)

    def write(self, path: str | os.PathLike) -> None:
        """Write all points with their classes, by the numbers that these have in files.

        A .las or .laz file gets them as classification; if the scan was read from such a file, all else is kept as it
        is there. A .ply file gets the property "label" and the colour of the class, .txt and .csv a header and the
        columns x, y, z, (red, green, blue of the scan,) label; .npy the columns x, y, z, label.

        Args:
            path: The file; an existing one is replaced.

        Raises:
            ValueError: If its name has another ending, or a number does not fit the format.
        """
        write_labelled_scan(
            Path(path),
            self.scene,
            np.asarray(self.label_values)[self.labels],
            dict(zip(self.label_values, self.class_names, strict=True)),
            class_colors=self.palette()[self.labels],
            source=self.source,
        )


class ScenePredictor:
    """A model for semantic segmentation with its processor.

    A scan that has more voxels than `max_voxels` is cut into tiles that overlap; where they do, their logits are
    averaged. Beside the scan itself, memory holds what belongs to one tile and the logits of points that wait for a
    neighbouring tile.

    Args:
        model: The model; its configuration names the classes.
        processor: Makes the voxels.
        max_voxels: Voxels of a tile at most.
        overlap: How far a tile reaches into its neighbours, in metres; by default as `cut_tiles`.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: SceneProcessor,
        *,
        max_voxels: int = MAX_VOXELS,
        overlap: float | None = None,
    ):
        self.model = model.eval()
        self.processor = processor
        self.max_voxels = max_voxels
        self.overlap = overlap
        config = model.config
        self.class_names = class_names_of(config)
        self.label_values = list(getattr(config, "label_values", None) or range(config.num_labels))
        expected = getattr(config, "in_channels", None)
        if expected is not None and expected != 3 * len(processor.feature_names):
            raise ValueError(
                f"the model takes {expected} features a voxel, and the processor gives {processor.feature_names}, "
                f"{3 * len(processor.feature_names)}; load the processor that was saved with the model"
            )

    def predict(
        self,
        scan: Any,
        *,
        columns: str | None = None,
        drop_invalid: bool = False,
        probabilities: bool = False,
        progress: bool = True,
    ) -> ScenePrediction:
        """Predict the class of each point of a scan.

        Args:
            scan: A file or folder that `read_scene` reads, a [`Scene`], a mapping with `points` and more, or
                coordinates of shape `(num_points, 3)`.
            columns: As in `read_scene`.
            drop_invalid: Leave out points with NaN or infinite numbers instead of refusing the scan.
            probabilities: Also give the probabilities of all classes.
            progress: Show a bar where there are several tiles.

        Returns:
            The class of each point of the scan.

        Raises:
            ValueError: If the scan cannot be read or used.
        """
        source = Path(scan) if isinstance(scan, str | os.PathLike) else None
        if source is not None:
            scene = read_scene(source, labels=False, columns=columns, drop_invalid=drop_invalid)
        else:
            scene = Scene.from_any(scan, "the scan", drop_invalid)
        labels = np.empty(len(scene), dtype=np.int64)
        confidence = np.empty(len(scene), dtype=np.float32)
        table = np.empty((len(scene), len(self.class_names)), dtype=np.float32) if probabilities else None
        for rows, logits in self._mean_logits(scene, progress):
            shares = torch.softmax(torch.from_numpy(logits), dim=1).numpy()
            labels[rows] = shares.argmax(axis=1)
            confidence[rows] = shares.max(axis=1)
            if table is not None:
                table[rows] = shares
        return ScenePrediction(scene, labels, confidence, table, self.class_names, self.label_values, source)

    def _tiles(self, scene: Scene) -> list[Tile]:
        if self.processor.shift == "unit_sphere":  # an object, whose size is known as a whole only
            everything = np.arange(len(scene))
            return [Tile(everything, np.ones(len(scene), dtype=bool))]
        size = self.processor.voxel_size
        return list(cut_tiles(scene.points, size, self.max_voxels, self.overlap, scene.name))

    def _mean_logits(self, scene: Scene, progress: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Give numbers of points and their logits, each point once, as soon as all tiles with it are done."""
        tiles = self._tiles(scene)
        cores = [tile.rows[tile.core] for tile in tiles]
        owner = np.empty(len(scene), dtype=np.int32)
        for number, rows in enumerate(cores):
            owner[rows] = number
        # The last tile that has a point of a core.
        last = np.zeros(len(tiles), dtype=np.int64)
        for number, tile in enumerate(tiles):
            last[np.unique(owner[tile.rows])] = number
        sums: dict[int, np.ndarray] = {}
        counts: dict[int, np.ndarray] = {}
        disable = None if progress and len(tiles) > 1 else True
        for number, tile in enumerate(tqdm(tiles, desc="Predicting", unit="tile", disable=disable)):
            logits, inverse = self._logits(scene.select(tile.rows))
            owners = owner[tile.rows]
            order = np.argsort(owners, kind="stable")
            found, starts = np.unique(owners[order], return_index=True)
            for core, chosen in zip(found.tolist(), np.split(order, starts[1:]), strict=True):
                if core not in sums:
                    sums[core] = np.zeros((len(cores[core]), logits.shape[1]), dtype=np.float32)
                    counts[core] = np.zeros(len(cores[core]), dtype=np.float32)
                places = np.searchsorted(cores[core], tile.rows[chosen])
                sums[core][places] += logits[inverse[chosen]]
                counts[core][places] += 1
                if last[core] == number:
                    yield cores[core], sums.pop(core) / counts.pop(core)[:, None]

    @torch.no_grad()
    def _logits(self, tile: Scene) -> tuple[np.ndarray, np.ndarray]:
        """Run the model; logits of the voxels `(num_voxels, num_classes)`, and the voxel of each point."""
        arrays = self.processor.prepare(tile)
        device = next(self.model.parameters()).device
        batch = {name: tensor.to(device) for name, tensor in pack([arrays]).items() if name != "labels"}
        return self.model(**batch).logits.float().cpu().numpy(), arrays["inverse"]
