"""How a command or a script ends: an error that adaptx raises is one paragraph and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from adaptx.errors import AdaptxError, FolderError, MissingExtra, TrainingInterrupted, choices

TRAIN_EXTRA = (
    *("torch", "transformers", "peft", "accelerate", "psutil", "sklearn"),
    *("huggingface_hub", "filelock", "matplotlib", "datasets", "pyarrow", "captum"),
)


def run(main: Callable[[], object]) -> None:
    """Run `main`; what it raises on purpose is printed without a traceback."""
    try:
        main()
    except TrainingInterrupted as error:
        _refuse(error, 128 + error.signal)
    except AdaptxError as error:
        _refuse(error)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in TRAIN_EXTRA:
            raise
        _refuse(MissingExtra(error.name or "", "train", "This command"))


def already_done(run: Path, adapters: Iterable[Path]) -> bool:
    """Whether a run to be resumed is done and all its adapters are written; then it says so."""
    from adaptx import storage
    from adaptx.training.runs import read_run

    adapters = list(adapters)
    try:
        done = read_run(run).state == "done"
        for folder in adapters:
            storage.read_manifest(folder, "adapter")
    except FolderError:
        return False
    if done and first_here():
        print(
            f"The run {run} is done already, and wrote {choices(adapters)}: nothing is left to do. "
            f"For another training choose another --run."
        )
    return done


def _refuse(error: AdaptxError, code: int = 2) -> None:
    if first_here():  # a machine's processes meet the same error
        print(f"Error: {error}", file=sys.stderr)
    sys.exit(code)


def first_here() -> bool:
    """Whether this process is the first of its machine, and speaks for the others."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def main_process() -> bool:
    """Whether this process is the one that writes, of those that `accelerate launch` started."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)
