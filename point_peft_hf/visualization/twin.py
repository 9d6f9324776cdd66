"""A twin of a model, to look inside without touching what others may be running."""

from __future__ import annotations

import functools
from types import MethodType
from typing import Any

from torch import nn


def make_twin(model: nn.Module) -> nn.Module:
    """Put other modules around the weights of a model.

    Modes, hooks and attributes of the twin can be changed: the model, which another thread may be running and which
    may be compiled, stays as it is. The weights are the same tensors. What is compiled in the model runs as it was
    written.
    """
    twins: dict[int, nn.Module] = {}

    def twin_of(module: nn.Module) -> nn.Module:
        module = module._modules.get("_orig_mod", module)
        if id(module) in twins:
            return twins[id(module)]
        twin = twins[id(module)] = object.__new__(type(module))
        state = {name: _rebound(value, module, twin) for name, value in vars(module).items()}
        children = module._modules.items()
        state["_modules"] = {name: None if child is None else twin_of(child) for name, child in children}
        state["_compiled_call_impl"] = None
        vars(twin).update(state)
        return twin

    return twin_of(model)


def _rebound(value: Any, module: nn.Module, twin: nn.Module) -> Any:
    """The value of an attribute for the twin: its own dictionaries, and what was bound to the module bound to it."""
    if isinstance(value, dict):
        return value.copy()
    if isinstance(value, MethodType) and value.__self__ is module:
        return MethodType(value.__func__, twin)
    if isinstance(value, functools.partial) and value.args and value.args[0] is module:
        # How accelerate wraps the `forward` of a module whose weights are kept elsewhere.
        return functools.partial(value.func, twin, *value.args[1:], **value.keywords)
    return value
