"""Which adapters are in the bank: those that were used last, of all that are known on disk.

An adapter that a running answer uses stays where it is until the answer is given, whatever is added
or removed meanwhile.
"""

from __future__ import annotations

import re
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from adaptx.adapters.folder import Facts, read_facts
from adaptx.errors import FolderError, OptionError, choices
from adaptx.runtime.bank import LiveBank, Place
from adaptx.runtime.loading import Loaded
from adaptx.storage import MANIFEST

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_limit(limit: int | str | None) -> tuple[int | None, int | None]:
    """(count, bytes) of a limit such as 100, "100", "512MB" or None; OptionError for another."""
    if limit is None:
        return None, None
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(KB|MB|GB)", str(limit).strip().upper())
    if match and (size := int(float(match[1]) * _UNITS[match[2]])):
        return None, size
    if not str(limit).isdecimal() or int(limit) < 1:
        raise OptionError(
            f"max_resident={limit!r} must be a number of adapters, at least 1, or a size such as "
            f"512MB."
        )
    return int(limit), None


@dataclass
class Counts:
    """What the pool did: asked for and in the bank, or not; loads, and their seconds."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    loads: int = 0
    load_seconds: float = 0.0
    slowest_load: float = 0.0


@dataclass
class Resident:
    """An adapter in the bank. `place` is None for a head alone. `leases` counts running answers."""

    loaded: Loaded
    place: Place | None
    bytes: int
    leases: int = 0
    removed: bool = False


@dataclass
class Known:
    """An adapter on disk. `unchecked`: its saturation is to be measured when it is first loaded."""

    folder: Path
    facts: Facts
    pinned: bool = False
    unchecked: bool = True
    saturation: float | None = None
    loading: threading.Lock = field(default_factory=threading.Lock)


class Pool:
    """The adapters by name, and the bank. Its lock is never held while a graph runs or a file is
    read.

    `measure(name, place)` is the saturation of an adapter in the bank, or raises FolderError.
    """

    def __init__(
        self,
        bank: LiveBank,
        load: Callable[[Path], Loaded],
        measure: Callable[[str, Place | None], float | None],
        limit: int | str | None = None,
    ):
        self.bank, self.counts, self._measure = bank, Counts(), measure
        self.most, self.most_bytes = parse_limit(limit)
        self.known: dict[str, Known] = {}
        self.resident: OrderedDict[str, Resident] = OrderedDict()  # least recently used first
        self._load, self._lock = load, threading.Lock()

    def know(self, folder: Path, facts: Facts, *, pin: bool = False, check: bool = True) -> None:
        """Remember an adapter's folder; OptionError where its name is taken."""
        self._know(Known(folder, facts, pin, check))

    def know_library(self, library: Path, pin: Sequence[str] = ()) -> None:
        """`know` the adapters of a folder of folders, but those of names that are known already;
        broken ones are left out, with a warning.
        """
        taken = set(self.known)
        broken: dict[str, FolderError] = {}
        for path in sorted(manifest.parent for manifest in library.glob(f"*/{MANIFEST}")):
            try:
                facts, _ = read_facts(path)
            except FolderError as error:
                broken[path.name] = error
                continue
            if facts.name not in taken:
                self.know(path, facts, pin=facts.name in pin)
        if broken:
            first = next(iter(broken.values()))
            warnings.warn(
                f"{library} has no adapter in {choices(broken)}, left out: {first}", stacklevel=3
            )

    def _know(self, known: Known) -> None:
        with self._lock:
            if (there := self.known.get(name := known.facts.name)) is not None:
                raise OptionError(
                    f"There is an adapter {name!r} already, from {there.folder}: remove it first, "
                    f"or rename one of them with `adaptx adapters rename`."
                )
            self.known[name] = known

    def add(
        self, folder: Path, loaded: Loaded, *, pin: bool = False, check: bool = True
    ) -> tuple[Known, Resident | None]:
        """`know`, and write the adapter, which was read already, into a free slot.

        The resident is None where another thread has removed it again.
        """
        started = time.perf_counter()
        rows, known = self._rows(loaded), Known(folder, loaded.facts, pin, check)
        with known.loading:  # who asks for it from now on waits
            self._know(known)
            try:
                return known, self._insert(known, loaded, rows, started)
            except BaseException:  # an interrupt too: nothing was added
                with self._lock:
                    if self.known.get(name := loaded.facts.name) is known:
                        del self.known[name]
                raise

    def forget(self, name: str) -> None:
        """Take an adapter out; its slot is free once no running answer uses it."""
        with self._lock:
            self._known(name)
            del self.known[name]
            if (resident := self.resident.pop(name, None)) is not None:
                resident.removed = True
                self._free(resident)

    def _known(self, name: str) -> Known:
        if name not in self.known:
            raise OptionError(
                f"There is no adapter {name!r}; there is {choices(self.known) or 'none'}."
            )
        return self.known[name]

    def about(self, name: str) -> tuple[Known, Resident | None]:
        """What is known of an adapter, and what is in the bank; OptionError for no such name."""
        with self._lock:
            return self._known(name), self.resident.get(name)

    def all(self) -> dict[str, tuple[Known, Resident | None]]:
        """`about` each of them, at one moment."""
        with self._lock:
            return {name: (known, self.resident.get(name)) for name, known in self.known.items()}

    @contextmanager
    def lease(self, names: Sequence[str]) -> Iterator[dict[str, Resident]]:
        """The adapters of a request, in the bank until the block ends."""
        held: dict[str, Resident] = {}
        try:
            for name in dict.fromkeys(names):
                held[name] = self._take(name)
            yield held
        finally:
            with self._lock:
                for resident in held.values():
                    resident.leases -= 1
                    self._free(resident)
                self._shrink()

    def _take(self, name: str) -> Resident:
        with self._lock:
            known = self._known(name)
            if (found := self._touch(name)) is not None:
                self.counts.hits += 1
                return found
            self.counts.misses += 1
        with known.loading:  # one load, whoever else asks for it meanwhile
            with self._lock:
                if (found := self._touch(name)) is not None:
                    return found
            started = time.perf_counter()
            loaded = self._load(known.folder)
            if loaded.facts.name != name:
                raise FolderError(
                    f"{known.folder} held the adapter {name!r} and holds "
                    f"{loaded.facts.name!r} now: remove {name!r}, and add the folder again."
                )
            made = self._insert(known, loaded, self._rows(loaded), started, leases=1)
        return made or self._take(name)  # removed while it was read, and perhaps another added

    def _rows(self, loaded: Loaded) -> dict[str, np.ndarray] | None:
        """What goes into the bank; None for a head alone."""
        return (
            self.bank.rows(loaded.sites, loaded.facts.scales, loaded.rank) if loaded.sites else None
        )

    def _touch(self, name: str) -> Resident | None:
        """A resident with one lease more, now the last used."""
        if (found := self.resident.get(name)) is not None:
            found.leases += 1
            self.resident.move_to_end(name)
        return found

    def _insert(
        self,
        known: Known,
        loaded: Loaded,
        rows: dict[str, np.ndarray] | None,
        started: float,
        leases: int = 0,
    ) -> Resident | None:
        """None where the adapter was removed meanwhile."""
        place, name = None, known.facts.name
        if rows is not None:
            with self._lock:
                place = self.bank.take(loaded.rank)
            self.bank.write(place, rows)
        if known.unchecked:
            try:
                known.saturation = self._measure(name, place)
            except BaseException:  # an interrupt too: the slot is free again
                if place is not None:
                    with self._lock:
                        self.bank.give_back(place)
                raise
            known.unchecked = False
        size = (place.chunk.slot_bytes if place else 0) + (loaded.head.bytes if loaded.head else 0)
        made = Resident(replace(loaded, sites={}), place, size, leases)  # they are in the bank now
        seconds = time.perf_counter() - started
        with self._lock:
            if self.known.get(name) is not known:
                made.removed, made.leases = True, 0
                self._free(made)
                return None
            self.resident[name] = made
            self.counts.loads += 1
            self.counts.load_seconds += seconds
            self.counts.slowest_load = max(self.counts.slowest_load, seconds)
            self._shrink()
        return made

    def _shrink(self) -> None:
        """Over the limit, let go of the least recently used that nobody uses or pinned."""
        if self.most is None and self.most_bytes is None:
            return
        for name in list(self.resident):
            count, size = len(self.resident), sum(r.bytes for r in self.resident.values())
            over = self.most is not None and count > self.most
            if not over and not (self.most_bytes is not None and size > self.most_bytes):
                return
            resident = self.resident[name]
            if not resident.leases and not self.known[name].pinned:
                del self.resident[name]
                resident.removed = True
                self._free(resident)
                self.counts.evictions += 1

    def _free(self, resident: Resident) -> None:
        if resident.removed and resident.leases <= 0 and resident.place is not None:
            self.bank.give_back(resident.place)
            resident.place = None
