"""Augmentation of scenes, before they become voxels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .scene import Scene
from .voxels import voxelize


@dataclass(frozen=True)
class SceneAugmentation:
    """Random changes of a scene; what is drawn depends on the generator alone.

    The defaults are those that indoor scenes are usually trained with (Pointcept's configurations of Point Transformer
    V3), without elastic distortion.

    Args:
        rotation: Largest angle about the vertical, radians.
        tilt: Largest angle about either horizontal axis, radians.
        scale: Smallest and largest factor, the same for all axes.
        flip: Chance to mirror x, and to mirror y.
        jitter: Standard deviation of noise of each point, in metres; four times as much at most.
        dropout: Largest share of points left out.
        contrast: Chance to stretch the colours to the whole range.
        brightness: Largest change of all colours of a scene, as a share of the range.
        color_noise: Standard deviation of noise of each colour, as a share of the range.
        drop_colors: Chance that a scene loses its colours, so that the model learns to do without.
        drop_normals: Chance that a scene loses its normals.
        max_voxels: Number of voxels to cut out, the nearest to a random one; `None` for whole scenes.
    """

    rotation: float = np.pi
    tilt: float = np.pi / 64
    scale: tuple[float, float] = (0.9, 1.1)
    flip: float = 0.5
    jitter: float = 0.005
    dropout: float = 0.2
    contrast: float = 0.2
    brightness: float = 0.05
    color_noise: float = 0.05
    drop_colors: float = 0.0
    drop_normals: float = 0.0
    max_voxels: int | None = None

    def __call__(self, scene: Scene, generator: np.random.Generator, voxel_size: float) -> Scene:
        """Change a scene.

        Args:
            scene: The scene; it is left as it is.
            generator: Source of randomness.
            voxel_size: Edge of a voxel in metres, by which `max_voxels` counts.

        Returns:
            The new scene. Its points are in random order, so that another point of a voxel is the first one each time.
        """
        keep = max(1, round(len(scene) * (1 - generator.uniform(0, self.dropout))))
        scene = scene.select(generator.permutation(len(scene))[:keep])
        if self.max_voxels is not None:
            scene = crop(scene, generator, self.max_voxels, voxel_size)
        turn = self._rotation(generator)
        middle = (scene.points.min(axis=0) + scene.points.max(axis=0)) / 2
        noise = generator.standard_normal(scene.points.shape, dtype=np.float32) * self.jitter
        points = (scene.points - middle) @ (turn * generator.uniform(*self.scale)).T.astype(np.float32)
        points += noise.clip(-4 * self.jitter, 4 * self.jitter)
        has_normals = scene.normals is not None and generator.random() >= self.drop_normals
        normals = scene.normals @ turn.T.astype(np.float32) if has_normals else None
        return replace(scene, points=points, normals=normals, colors=self._change_colors(scene.colors, generator))

    def _rotation(self, generator: np.random.Generator) -> np.ndarray:
        turn = np.diag([*np.where(generator.random(2) < self.flip, -1.0, 1.0), 1.0])
        for axis, limit in ((2, self.rotation), (0, self.tilt), (1, self.tilt)):
            angle = generator.uniform(-limit, limit)
            one, other = (axis + 1) % 3, (axis + 2) % 3
            matrix = np.eye(3)
            matrix[one, one] = matrix[other, other] = np.cos(angle)
            matrix[one, other], matrix[other, one] = -np.sin(angle), np.sin(angle)
            turn = matrix @ turn
        return turn

    def _change_colors(self, colors: np.ndarray | None, generator: np.random.Generator) -> np.ndarray | None:
        if colors is None or generator.random() < self.drop_colors:
            return None
        colors = colors.astype(np.float32)
        if generator.random() < self.contrast:
            low, high = colors.min(axis=0), colors.max(axis=0)
            share = generator.random(dtype=np.float32)
            colors += share * ((colors - low) * (255 / np.maximum(high - low, 1)) - colors)
        colors += 255 * generator.uniform(-self.brightness, self.brightness, 3).astype(np.float32)
        colors += 255 * self.color_noise * generator.standard_normal(colors.shape, dtype=np.float32)
        return colors.clip(0, 255).round().astype(np.uint8)


def crop(scene: Scene, generator: np.random.Generator, max_voxels: int, voxel_size: float) -> Scene:
    """Cut out the voxels of a scene that are nearest to a random one, `max_voxels` at most, with one point each.

    A scene that has no more voxels stays as it is.
    """
    _, first, _ = voxelize(scene.points, voxel_size, scene.name)
    if len(first) <= max_voxels:
        return scene
    points = scene.points[first]
    distance = np.square(points - points[generator.integers(len(points))]).sum(axis=1)
    return scene.select(first[np.argpartition(distance, max_voxels - 1)[:max_voxels]])
