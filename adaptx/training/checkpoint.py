"""Checkpoints: folders written whole or not at all, so that a run that is cut off goes on.

    <run>/checkpoints/step-00000123/
        adaptx.json           kind "checkpoint", `state` (JSON), the sha256 of the tensors
        tensors.safetensors

A checkpoint is made beside, fsynced and renamed (adaptx.storage): there is none, or a whole one. An
older one goes only after a newer one is there. No pickle.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from adaptx import storage
from adaptx.errors import FolderError, OptionError

FOLDER, TENSORS = "checkpoints", "tensors.safetensors"
KEPT = 2  # should the newest be damaged later on, there is one before it


@dataclass(frozen=True)
class Checkpoint:
    """A training as it was after `step` optimizer steps."""

    folder: Path
    step: int
    state: dict[str, Any]
    tensors: dict[str, Tensor]


def check_interval(seconds: float) -> None:
    """Raise OptionError for seconds between checkpoints that can't be."""
    if not seconds >= 0:
        raise OptionError(f"checkpoint_every={seconds!r} must be seconds, at least 0.")


def write_checkpoint(
    run: Path, step: int, state: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Path:
    """Write a run's checkpoint, and delete those that are older than the last KEPT.

    Raises FolderError where the disk is full; the checkpoints before it are still there.
    """
    from safetensors.torch import save_file

    folder = run / FOLDER / f"step-{step:08d}"
    # Tensors that share memory, as tied weights do, are written once each.
    plain = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    with storage.new_folder(folder, overwrite=True, kind="checkpoint") as made:
        save_file(plain, made / TENSORS, {"format": "pt"})
        storage.write_manifest(made, "checkpoint", {"step": step, "state": dict(state)})
    others = [path for path in _found(run) if path != folder]
    for old in others[: max(0, len(others) - KEPT + 1)]:
        shutil.rmtree(old, ignore_errors=True)
    for part in folder.parent.glob(".step-*"):  # of a process that was killed meanwhile
        shutil.rmtree(part, ignore_errors=True)
    return folder


def newest_checkpoint(run: Path) -> Checkpoint | None:
    """The newest checkpoint of a run that is whole; what isn't is passed over with a warning."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for folder in reversed(_found(run)):
        try:
            manifest = storage.read_manifest(folder, "checkpoint")
            tensors = load_file(storage.check_file(folder, TENSORS, manifest))
            return Checkpoint(folder, int(manifest["step"]), dict(manifest["state"]), tensors)
        except (FolderError, SafetensorError, KeyError, TypeError, ValueError) as error:
            warnings.warn(
                f"{folder} is no whole checkpoint, and the one before it is used: {error}",
                stacklevel=2,
            )
    return None


def _found(run: Path) -> list[Path]:
    """The checkpoints' folders, oldest first."""
    named = [
        path
        for path in (run / FOLDER).glob("step-*")
        if re.fullmatch(r"step-\d{8,}", path.name) and path.is_dir()
    ]
    return sorted(named, key=lambda path: int(path.name.removeprefix("step-")))
