"""Whether the fields of a configuration have the types that they are declared with."""

from __future__ import annotations

import functools
import math
import types
import typing
from dataclasses import fields
from typing import Any


def check_types(config: Any) -> None:
    """Check the types of all fields of a dataclass. A whole number is a number, but a truth value is not."""
    declared = _declared_types(type(config))
    for field in fields(config):
        value = getattr(config, field.name)
        if value is not field.default and not _fits(value, declared[field.name]):
            wanted = _name(declared[field.name])
            raise ValueError(f"`{field.name}` must be {wanted}, got {value!r} ({type(value).__name__}).")


@functools.cache
def _declared_types(config_class: type) -> dict[str, Any]:
    return typing.get_type_hints(config_class)


def _fits(value: Any, declared: Any) -> bool:
    if declared is Any:
        return True
    origin, arguments = typing.get_origin(declared), typing.get_args(declared)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is list:
        # PEFT turns lists of names into sets.
        return isinstance(value, list | set | tuple | range) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(key, arguments[0]) and _fits(item, arguments[1]) for key, item in value.items()
        )
    if declared is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if declared is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, declared)


def _name(declared: Any) -> str:
    options = (
        typing.get_args(declared) if typing.get_origin(declared) in (typing.Union, types.UnionType) else (declared,)
    )
    return " or ".join(
        "None" if option is type(None) else getattr(option, "__name__", str(option)) for option in options
    )
