"""SIGTERM and SIGINT while a run trains: noted, and acted upon after the step."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
TORCHRUN = "TORCHELASTIC_RUN_ID"  # in the environment of its processes


class Stopping:
    """A context manager: inside, the first such signal is kept in `signal`.

    A SIGTERM after it changes nothing: a launcher sends one to its processes, and what stopped the
    launcher may have done so too. A SIGINT after it ends the process as if nothing were here; under
    torchrun, which repeats a terminal's SIGINT, a second one after it. Where nothing can be
    installed (another thread than the main one), or `on` is off, signals do what they did.
    """

    def __init__(self, on: bool):
        self.on = on and threading.current_thread() is threading.main_thread()
        self.signal: int | None = None
        self._left = 2 if TORCHRUN in os.environ else 1  # SIGINTs after it, until one ends all
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        for number in SIGNALS if self.on else ():
            self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
        elif number == signal.SIGINT:
            self._left -= 1
            if not self._left:
                self._restore()
                signal.raise_signal(number)

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
