"""Scenes: rooms, streets and forests, from files to batches of voxels."""

from .augmentation import SceneAugmentation
from .classes import SceneClasses
from .collator import SceneCollator
from .dataset import SceneDataset
from .layouts import hold_out, load_scenes
from .processing import PUBLISHED_PREPARATION, SceneProcessor, register_scene_processor
from .reading import SceneFormat, read_scene
from .scene import Scene
from .tiles import MAX_VOXELS, cut_tiles

__all__ = [
    "MAX_VOXELS",
    "PUBLISHED_PREPARATION",
    "Scene",
    "SceneAugmentation",
    "SceneClasses",
    "SceneCollator",
    "SceneDataset",
    "SceneFormat",
    "SceneProcessor",
    "cut_tiles",
    "hold_out",
    "load_scenes",
    "read_scene",
    "register_scene_processor",
]
