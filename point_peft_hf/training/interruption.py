"""Ends of a training other than a crash: asked for from outside, or for a reason that a person should read."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class TrainingStopped(RuntimeError):
    """Training cannot go on. The message says why, what is safe and where, and how to go on."""


class TrainingDiverged(TrainingStopped):
    """A loss or a gradient is not finite."""


class TrainingInterrupted(SystemExit):
    """A signal ended training after its state was saved; the exit code is 128 and the number of the signal."""


class StopRequest:
    """Within this context, Ctrl-C and SIGTERM are noted, to be obeyed when the step is finished.

    Handlers are only set in the main thread, and set back in the end.

    Args:
        insist: Whether a second signal ends the process at once. Not for processes under a launcher, which passes on
            a Ctrl-C that they have received already.

    Attributes:
        signal_number: The signal that came; 0 while none has.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, insist: bool = True) -> None:
        self.signal_number = 0
        self.insist = insist
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        if self.insist:
            self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
