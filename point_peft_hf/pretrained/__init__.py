"""The backbones that ship with the package."""

from __future__ import annotations

from pathlib import Path

DEFAULT_BACKBONE = "point-mae-small-procedural"
SCENE_BACKBONE = "ptv3-small-procedural"


def backbone_folder(name: str = DEFAULT_BACKBONE) -> str:
    """Where to load a backbone from.

    Args:
        name: Name of a shipped backbone, a folder, or a Hub repository.

    Returns:
        The folder of the shipped backbone of that name, or the name itself.
    """
    folder = Path(__file__).parent / name
    return str(folder) if (folder / "config.json").is_file() else name
