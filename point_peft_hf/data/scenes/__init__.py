"""Scenes: rooms, streets and forests, from files to batches of voxels."""

from .processing import PUBLISHED_PREPARATION, SceneProcessor, register_scene_processor
from .reading import SceneFormat, read_scene
from .scene import Scene

__all__ = [
    "PUBLISHED_PREPARATION",
    "Scene",
    "SceneFormat",
    "SceneProcessor",
    "read_scene",
    "register_scene_processor",
]
