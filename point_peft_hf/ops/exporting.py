"""Which operators a program may have that is exported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch._higher_order_ops.scan import scan

State = tuple[torch.Tensor, ...]
_FOR_ONNX = ContextVar("for_onnx", default=False)


@contextmanager
def exporting_for_onnx() -> Iterator[None]:
    """Inside, `torch.export` gives programs that can become ONNX files, with operators as ONNX defines them."""
    token = _FOR_ONNX.set(True)
    try:
        yield
    finally:
        _FOR_ONNX.reset(token)


def is_exporting_for_onnx() -> bool:
    """Whether a program is being exported for ONNX."""
    return torch.compiler.is_exporting() and _FOR_ONNX.get()


def repeat(step: Callable[[State], tuple[State, torch.Tensor]], state: State, count: int) -> torch.Tensor:
    """Call a function on its own state again and again.

    An exported program gets a loop: unrolled, hundreds of steps would take megabytes and seconds to load.

    Args:
        step: From a state to the next one, with a result; it must not work in place.
        state: The first state.
        count: How often, at least once.

    Returns:
        The results, along a new first dimension.
    """
    if torch.compiler.is_exporting():

        def body(state: State, _: torch.Tensor) -> tuple[State, torch.Tensor]:
            state, result = step(state)
            return state, result.clone()  # no tensor may be both a state and a result

        return scan(body, state, torch.zeros(count, 1, device=state[0].device))[1]
    results = []
    for _ in range(count):
        state, result = step(state)
        results.append(result)
    return torch.stack(results)
