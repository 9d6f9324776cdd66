"""Tables of names: what the modules and parameters of a published file are called here."""

from __future__ import annotations

import re
from collections.abc import Mapping

# A name here, or the several names that a fused projection is split into; none for what has no use here.
Targets = str | tuple[str, ...]
Names = dict[str, Targets]

_STATE = r"(\.(?:weight|bias|gamma|running_mean|running_var|num_batches_tracked))?"


def nested(source: str, target: str, names: Mapping[str, Targets]) -> Names:
    """The names of a part of a model, `source` in a published file and `target` here, from those inside of it."""
    inside = {name: (here,) if isinstance(here, str) else here for name, here in names.items()}
    return {f"{source}.{name}": tuple(f"{target}.{part}" for part in here) for name, here in inside.items()}


class NameTable:
    """The names here of published names.

    Args:
        names: Names here by published name, of modules (with all their tensors) or of single parameters. Each "#"
            stands for a number, in the same order on both sides. The first name that fits counts.
    """

    def __init__(self, names: Mapping[str, Targets]):
        self._rules = [
            (
                re.compile(re.escape(source).replace(re.escape("#"), r"(\d+)") + _STATE),
                [part.replace("#", "{}") for part in ((target,) if isinstance(target, str) else target)],
            )
            for source, target in names.items()
        ]

    def __call__(self, name: str) -> list[str] | None:
        """The names here of a published tensor; `None` if the table does not have it."""
        for pattern, targets in self._rules:
            if match := pattern.fullmatch(name):
                *numbers, state = match.groups("")
                return [target.format(*numbers) + state for target in targets]
        return None
