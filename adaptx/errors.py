"""Every error that adaptx raises on purpose.

    AdaptxError
    ├── OptionError          an option or argument has a value that can't be used
    │   ├── SiteError        a target module matches no site of the encoder
    │   ├── OutputExists     the output folder exists and may not be replaced
    │   └── LabelSetsDiffer  adapters to be compared don't answer the same labels
    ├── DataError            a data file is missing, unreadable, or has a bad row
    ├── FolderError          an adapter, encoder or model folder is damaged or not what it says
    │   └── FingerprintError an adapter belongs to another encoder
    ├── EncoderNotFound      an encoder's name leads nowhere (or the network is away)
    ├── HubError             a repository of the Hub can't be read or written
    ├── MissingExtra         a package of an optional extra isn't installed
    ├── TrainingDiverged     the loss became NaN or infinite
    ├── TrainingInterrupted  a signal ended the training; it can go on
    └── ParityError          an exported model doesn't answer like the one it was made from

A message is one paragraph: what was asked, what was found, and the remedy. The command line
prints it without a traceback and exits with code 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from signal import Signals
from typing import Any


class AdaptxError(Exception):
    """Base of every error that adaptx raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:  # processes tell each other what they met
        return _as_it_was, (type(self), self.args), vars(self)


class OptionError(AdaptxError, ValueError):
    """An option or argument has a value that can't be used."""


class SiteError(OptionError):
    """A target module matches no site of the encoder."""


class OutputExists(OptionError):
    """The output folder exists and may not be replaced."""


class LabelSetsDiffer(OptionError):
    """Adapters to be compared don't answer the same labels."""


class DataError(AdaptxError, ValueError):
    """A data file is missing or unreadable, or one of its rows is bad.

    `path` and `line` (1-based, None where the whole file is meant) say where, `message` what.
    """

    def __init__(self, message: str, path: str | Path | None = None, line: int | None = None):
        self.path, self.line, self.message = path, line, message
        where = "" if path is None else f"{path}: " if line is None else f"{path}, line {line}: "
        super().__init__(where + message)


class FolderError(AdaptxError):
    """A folder that adaptx reads is damaged, incomplete, or not what it says it is."""


class FingerprintError(FolderError):
    """An adapter belongs to another encoder: both fingerprints stand in the message."""

    def __init__(self, adapter: str, made_for: str, fingerprint: str, encoder: str, found: str):
        super().__init__(
            f"Adapter {adapter!r} was trained on encoder {made_for!r} (fingerprint {fingerprint}), "
            f"but this is {encoder!r} (fingerprint {found}). An adapter only works on the encoder "
            f"it was trained on: open that one, or train the adapter again on this one."
        )


class EncoderNotFound(AdaptxError):
    """An encoder's name leads to no folder, no bundled encoder, and no reachable Hub repository."""


class HubError(AdaptxError):
    """A repository of the Hub is unknown, closed to this user, or can't be reached."""


class MissingExtra(AdaptxError, ImportError):
    """A package that an optional extra of adaptx installs is missing."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(
            f"{purpose} needs the package {package!r}, which isn't installed: "
            f"pip install 'adaptx[{extra}]'"
        )


class TrainingDiverged(AdaptxError, ArithmeticError):
    """The loss or its gradient became NaN or infinite at optimizer step `step`.

    `adapter` is the last good one: the best on dev so far, or None when no epoch was finished.
    """

    def __init__(self, message: str, step: int, adapter: Any = None):
        self.step, self.adapter = step, adapter
        super().__init__(message)


class TrainingInterrupted(AdaptxError):
    """SIGTERM or SIGINT (`signal`) ended a training after optimizer step `step`.

    Its run's folder has a checkpoint of that step. Of a job with many adapters, `adapters` are
    those that weren't finished, and `run` is the folder of their runs.
    """

    def __init__(self, number: int, step: int, run: str | Path, adapters: Sequence[str] = ()):
        self.signal, self.step, self.run = number, step, Path(run)
        self.adapters = tuple(adapters)
        whose = f" of {choices(adapters)}" if adapters else ""
        call = (
            f"runs={str(run)!r}, resume=True"
            if adapters
            else f"ax.train(…, run={str(run)!r}, resume=True)"
        )
        super().__init__(
            f"{Signals(number).name} ended the training{whose} after step {step}, which is saved: "
            f"go on with the same command and --run {run} --resume ({call})."
        )


class ParityError(AdaptxError):
    """An exported model doesn't answer like the one it was made from; `report` has the figures."""

    def __init__(self, message: str, report: dict[str, Any]):
        self.report = report
        super().__init__(message)


def _as_it_was(kind: type[AdaptxError], args: tuple[Any, ...]) -> AdaptxError:
    error = kind.__new__(kind)
    error.args = args
    return error


def choices(names: Iterable[object]) -> str:
    """`a, b, c`: the choices of an error message, in the order given, shortened when many."""
    listed = [str(name) for name in names]
    shown = ", ".join(listed[:12])
    return shown + (f", … ({len(listed)} in all)" if len(listed) > 12 else "")
