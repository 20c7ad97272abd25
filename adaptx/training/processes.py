"""What the processes of a job tell each other, and how they divide its adapters."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch

from adaptx.errors import AdaptxError
from adaptx.training.stopping import Stopping

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
FAILURES = (AdaptxError, OSError)  # what may happen to one adapter, and all processes hear of
LONG = timedelta(days=30)


class Alone:
    """An accelerator's process, to a training that the others have no part in."""

    num_processes, process_index, is_main_process = 1, 0, True
    scaler, log_with, trackers = None, (), ()

    def __init__(self, accelerator: Accelerator):
        self.device, self.mixed_precision = accelerator.device, accelerator.mixed_precision

    @classmethod
    def of(cls, accelerator: Accelerator) -> Accelerator:
        """It, where an Accelerator is asked for: as much of one as a training needs."""
        return cast("Accelerator", cls(accelerator))

    def wait_for_everyone(self) -> None:
        """There is nobody to wait for."""


def gathered(accelerator: Accelerator, value: T) -> list[T]:
    """Each process's value; every process calls it."""
    from accelerate.utils import gather_object

    return [value] if accelerator.num_processes == 1 else list(gather_object([value]))


def by_the_first(accelerator: Accelerator, act: Callable[[], object]) -> None:
    """Have the first process do it, and wait; of FAILURES all processes raise what it met."""
    met: Exception | None = None
    if accelerator.is_main_process:
        try:
            act()
        except FAILURES as error:
            met = error
    heard = gathered(accelerator, met)[0]
    if heard is not None:
        raise met or heard


def divided(costs: Sequence[float], processes: int) -> list[list[int]]:
    """The places of what each process does: of the costs that are left, the greatest goes to the
    process that has the least to do (Graham 1969, doi 10.1137/0117039: longest processing time).
    """
    found: list[list[int]] = [[] for _ in range(processes)]
    load = np.zeros(processes)
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        process = int(load.argmin())
        found[process].append(place)
        load[process] += costs[place]
    return [sorted(places) for places in found]


class Meeting:
    """Where processes that go their own ways meet at the end. Every process makes one.

    One may be done hours before another: gloo waits as long as it is told to, and watches whether
    the others are alive; NCCL's exchanges give up after minutes.
    """

    def __init__(self, accelerator: Accelerator):
        several = accelerator.num_processes > 1
        self.processes = accelerator.num_processes
        self.group = torch.distributed.new_group(backend="gloo", timeout=LONG) if several else None

    def gathered(self, value: T, stopping: Stopping) -> list[T] | None:
        """Each process's value; None where this one is stopped while it waits.

        Raises AdaptxError where another one has ended.
        """
        if self.group is None:
            return [value]
        found: list[Any] = [None] * self.processes
        try:
            all_here = torch.distributed.barrier(self.group, async_op=True)
            while not all_here.is_completed():
                if stopping.signal is not None:
                    return None
                time.sleep(0.1)
            all_here.wait()
            torch.distributed.all_gather_object(found, value, self.group)
        except RuntimeError as error:
            raise AdaptxError(
                f"Another process of the job ended before its adapters were trained, and has said "
                f"why; those of this one are finished. Go on with --resume (resume=True): {error}"
            ) from error
        return found
