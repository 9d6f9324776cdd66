"""Procedural rooms: labelled scans of rooms that need no download."""

from .dataset import (
    FINETUNING_CLASSES,
    NUM_POINTS,
    PRETRAINING_CLASSES,
    TASK_ROOMS,
    ProceduralRooms,
    load_procedural_rooms,
    make_room,
)
from .furnishing import FINETUNING_ROOMS, PRETRAINING_ROOMS

__all__ = [
    "FINETUNING_CLASSES",
    "FINETUNING_ROOMS",
    "NUM_POINTS",
    "PRETRAINING_CLASSES",
    "PRETRAINING_ROOMS",
    "TASK_ROOMS",
    "ProceduralRooms",
    "load_procedural_rooms",
    "make_room",
]
