"""Settings that papers train with, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Common to Point-MAE and the methods that fine-tune it: AdamW with weight decay 0.05, clipped at 10, and a cosine from
# 5e-4 to 1e-6 after 10 epochs of warm-up.
_COMMON = {
    "num_train_epochs": 300.0,
    "per_device_train_batch_size": 32,
    "learning_rate": 5e-4,
    "warmup_steps": 10 / 300,
    "weight_decay": 0.05,
    "max_grad_norm": 10.0,
}
PRESETS: dict[str, dict[str, Any]] = {
    "paper_scanobjectnn": {
        **_COMMON,
        "num_points": 2048,
        "augmentation": "rotate",
        "model_config": {"num_groups": 128, "group_size": 32, "drop_path_rate": 0.1},
    },
    "paper_modelnet40": {
        **_COMMON,
        "num_points": 1024,
        "augmentation": "scale_translate",
        "model_config": {"num_groups": 64, "group_size": 32, "drop_path_rate": 0.1},
    },
}


def with_preset(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with those of their "preset" added, which others take precedence over.

    Raises:
        ValueError: If there is no such preset.
    """
    rest = dict(arguments)
    name = rest.pop("preset", None)
    return {**find_preset(name), **rest}


def find_preset(name: str | None) -> dict[str, Any]:
    """The arguments of a preset; none for `None`.

    Raises:
        ValueError: If there is no such preset.
    """
    if name is None:
        return {}
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}. Choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]
