"""Several adapters on one resident backbone, each ready to predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .part_predictor import PartPredictor
from .predictor import Predictor, load_predictor
from .sharing import share_weights


def load_resident(
    adapters: Sequence[str], model: str | None = None, device: str = "cpu", precision: str = "float32"
) -> dict[str, Predictor | PartPredictor]:
    """Load several adapters; those of one backbone share its weights, whatever their types, tasks and classes are.

    PEFT's own `load_adapter` and `set_adapter` also switch on one backbone, but only among adapters of one type with
    the same classes.

    Args:
        adapters: Folders or Hub repositories.
        model: Backbone of all: name of a shipped one, a folder or a Hub repository; default: the one each adapter
            names.
        device: Where to predict.
        precision: What matrices are multiplied in: "float32" or "bfloat16".

    Returns:
        The predictors by name: that of the folder or repository, as much of its path as makes it unique.

    Raises:
        ValueError: If there is none, one is given twice, or one cannot be loaded.
    """
    names = short_names(adapters)
    predictors = {}
    for name, adapter in zip(names, adapters, strict=True):
        predictors[name] = load_predictor(adapter, model, device, precision)
        share_weights([predictor.model for predictor in predictors.values()])
    return predictors


def short_names(paths: Sequence[str]) -> list[str]:
    """The shortest ends of paths that differ from each other."""
    parts = [Path(path).parts for path in paths]
    if not parts or len(set(parts)) < len(parts):
        raise ValueError(f"Give one or more adapters, each once; got {list(paths)}.")
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(map(str, paths))
