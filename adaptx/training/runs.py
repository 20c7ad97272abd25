"""A run's folder, written while a training goes on and read afterwards. No torch here.

    run.json    `Run`: what was trained on what, how it stands; replaced whole after each epoch
    log.jsonl   one JSON object a line, written through at once, so that a script can follow it:
                {"kind": "step", step, epoch, loss, lr, grad_norm, tokens, seconds}
                {"kind": "epoch", epoch, step, loss, seconds, dev_loss, <dev's scores>, best}
                {"kind": "end", state, error}
    checkpoints/  adaptx.training.checkpoint
    run.lock    held by the training: a run that says "running" and holds no lock was killed
    <name>/     what tensorboard reads, where that tracker is on

`seconds` of a step count from the start of the training, those of an epoch its training steps.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from adaptx import storage
from adaptx.errors import FolderError

FACTS = "run.json"
LOG = "log.jsonl"
LOCK = "run.lock"
CHECKPOINTS = "checkpoints"
SCHEMA = 1
STATES = ("running", "done", "failed", "diverged", "interrupted")
STOPPED = "stopped"  # never written: what "running" is called when its process is gone


@dataclass(frozen=True)
class Run:
    """What run.json says.

    state         one of STATES
    method        the adapter's, and `config` its configuration's plain values
    processes     how many trained together; `host` and `pid` are of the first
    started       and `ended`, ISO 8601 in UTC; `seconds` between them, so far
    epochs        how many are finished; `best` is the log's entry of the best on dev, if any
    error         why it failed or diverged
    """

    state: str
    name: str
    encoder: str
    method: str
    task: dict[str, Any] | None
    config: dict[str, Any]
    settings: dict[str, Any]
    precision: str
    processes: int
    train_rows: int
    dev_rows: int
    versions: dict[str, Any]
    host: str
    pid: int
    started: str
    ended: str | None = None
    seconds: float = 0.0
    epochs: int = 0
    best: dict[str, Any] | None = None
    error: str | None = None
    folder: Path = field(default=Path(), metadata={"written": False})


_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("state", "name", "encoder", "method", "precision", "host", "started"), str),
    **dict.fromkeys(("processes", "train_rows", "dev_rows", "pid", "epochs"), int),
    **dict.fromkeys(("config", "settings", "versions"), dict),
    **dict.fromkeys(("task", "best"), (dict, type(None))),
    **dict.fromkeys(("ended", "error"), (str, type(None))),
    "seconds": (int, float),
}


def runs_dir() -> Path:
    """Where the command line keeps runs: `$ADAPTX_RUNS`, else `runs` in the current folder."""
    return Path(os.environ.get("ADAPTX_RUNS") or "runs")


def fresh_folder(name: str) -> Path:
    """A folder of `runs_dir()` that isn't there yet: `<name>-<YYYYmmdd-HHMMSS>[-n]`."""
    first = runs_dir() / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder, n = first, 1
    while folder.exists():
        n += 1
        folder = first.with_name(f"{first.name}-{n}")
    return folder


def write_run(run: Run) -> None:
    """Write run.json whole, in the place of what it was."""
    value = {f.name: getattr(run, f.name) for f in fields(Run) if f.metadata.get("written", True)}
    part = run.folder / f".{FACTS}.part"
    storage.write_json(part, {"schema": SCHEMA, "kind": "run", **value})
    storage.fsync(part)  # else a machine that goes down may leave an empty file
    part.replace(run.folder / FACTS)


def read_run(folder: str | Path) -> Run:
    """The run of a folder; its state is "stopped" where its process is gone.

    Raises FolderError when the folder holds no run, or one whose run.json isn't whole.
    """
    folder = Path(folder)
    path = folder / FACTS
    value = storage.read_json(path)
    if value.get("schema") != SCHEMA or value.get("kind") != "run":
        raise FolderError(
            f"{path} has schema {value.get('schema')!r} and kind {value.get('kind')!r}; this "
            f"adaptx reads runs of schema {SCHEMA}: was the folder written by `adaptx train`?"
        )
    try:
        run = Run(folder=folder, **{key: value[key] for key in _KINDS})
        wrong = [name for name, kind in _KINDS.items() if not isinstance(getattr(run, name), kind)]
        since(run.started)
    except (KeyError, TypeError, ValueError) as error:
        raise FolderError(f"{path} isn't whole ({error}): delete the run's folder.") from None
    if wrong or run.state not in STATES:
        name = wrong[0] if wrong else "state"
        raise FolderError(f"{path}: {name} can't be {getattr(run, name)!r}: delete the folder.")
    if run.state == "running" and not _is_locked(folder):
        object.__setattr__(run, "state", STOPPED)
    return run


def read_log(run: Run, kind: str) -> list[dict[str, Any]]:
    """The log's entries of one kind, in order; a last line that a kill cut short is left out."""
    return [entry for entry in _entries(run.folder / LOG) if entry.get("kind") == kind]


def find_runs(folder: str | Path) -> Iterator[Path]:
    """The folders with a run.json: `folder` itself, or those right below it, or below those, as a
    job with many adapters has them; by name.
    """
    folder = Path(folder)
    if (folder / FACTS).is_file():
        yield folder
    elif folder.is_dir():
        found = [*folder.glob(f"*/{FACTS}"), *folder.glob(f"*/*/{FACTS}")]
        yield from sorted(path.parent for path in found)


def now() -> str:
    """The time as ISO 8601 in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def since(moment: str) -> float:
    """Seconds since an ISO 8601 moment with its time zone."""
    return (
        datetime.now(timezone.utc) - datetime.fromisoformat(moment).astimezone()
    ).total_seconds()


def whole_entries(path: Path) -> list[dict[str, Any]]:
    """The log's steps and epochs, in order; a line that isn't whole costs a warning, and itself."""
    found = []
    for entry in _lines(path):
        if isinstance(entry, FolderError):
            warnings.warn(f"{entry} The line is left out.", stacklevel=2)
        elif entry.get("kind") in ("step", "epoch") and all(
            isinstance(entry.get(name), (int, float)) for name in ("step", "epoch", "seconds")
        ):
            found.append(entry)
    return found


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    for entry in _lines(path):
        if isinstance(entry, FolderError):
            raise FolderError(f"{entry} Take the line out, or resume the run, which does.")
        yield entry


def _lines(path: Path) -> Iterator[dict[str, Any] | FolderError]:
    """Each line's entry, or what is wrong with it."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number < len(lines):  # else the process was killed while it wrote
                yield FolderError(f"{path}, line {number}: this isn't JSON ({error}).")
            continue
        if isinstance(entry, dict):
            yield entry
        else:
            yield FolderError(f"{path}, line {number}: this isn't a JSON object.")


def _is_locked(folder: Path) -> bool:
    from filelock import FileLock, Timeout

    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that may only be read: believe what it says
        return True
