"""The record of a run: what is needed to repeat it, and what came out."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import accelerate
import peft
import torch
import transformers

RECORD_NAME = "run.json"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    return {
        "python": platform.python_version(),
        **{module.__name__: module.__version__ for module in (torch, transformers, peft, accelerate)},
    }


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that is either complete or not there."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)
