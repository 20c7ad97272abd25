"""Checkpoints: folders written whole or not at all, so that a run that is cut off goes on.

    <run>/checkpoints/step-00000123/
        adaptx.json           kind "checkpoint", `state` (JSON), the sha256 of the tensors
        tensors.safetensors

A checkpoint is made beside, fsynced and renamed (adaptx.storage): there is none, or a whole one. An
older one goes only after a newer one is there. No pickle.
"""

from __future__ import annotations

import itertools
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from adaptx import storage
from adaptx.errors import FolderError, OptionError, OutputExists
from adaptx.training.runs import CHECKPOINTS

TENSORS = "tensors.safetensors"
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

    folder = run / CHECKPOINTS / f"step-{step:08d}"
    _make_way(folder)
    # Tensors that share memory, as tied weights do, are written once each.
    plain = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    with storage.new_folder(folder, overwrite=True, kind="checkpoint") as made:
        save_file(plain, made / TENSORS, {"format": "pt"})
        storage.write_manifest(made, "checkpoint", {"step": step, "state": dict(state)})
    others = [path for path in _found(run) if path != folder and not _is_foreign(path)]
    for old in others[: max(0, len(others) - KEPT + 1)]:
        shutil.rmtree(old, ignore_errors=True)
    for part in folder.parent.glob(".step-*"):  # of a process that was killed meanwhile
        shutil.rmtree(part, ignore_errors=True)
    return folder


def newest_checkpoint(run: Path) -> Checkpoint | None:
    """The newest checkpoint of a run that is whole; what isn't is passed over with a warning.

    None where there are no checkpoints; FolderError where there are, and none is whole.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    damaged: list[str] = []
    for folder in reversed(_found(run)):
        try:
            manifest = storage.read_manifest(folder, "checkpoint")
            tensors = load_file(storage.check_file(folder, TENSORS, manifest))
            found = Checkpoint(folder, int(manifest["step"]), dict(manifest["state"]), tensors)
        except (FolderError, SafetensorError, KeyError, TypeError, ValueError) as error:
            if not _is_foreign(folder):
                damaged.append(f"{folder} is no whole checkpoint: {error}")
            continue
        for said in damaged:
            warnings.warn(f"The checkpoint {folder.name} is used. {said}", stacklevel=2)
        return found
    if damaged:
        raise FolderError(
            f"No checkpoint of the run is whole. {' '.join(damaged)} To begin the training anew, "
            f"delete {run / CHECKPOINTS}, or choose another run's folder."
        )
    return None


def _make_way(folder: Path) -> None:
    """Move away what stands in a checkpoint's place and isn't one."""
    if not folder.exists():
        return
    try:
        storage.check_output(folder, overwrite=True, kind="checkpoint")
    except OutputExists as error:
        aside = next(
            path
            for n in itertools.count(1)
            if not (path := folder.with_name(f"{folder.name}.aside-{n}")).exists()
        )
        folder.rename(aside)
        warnings.warn(f"{folder} was moved to {aside.name}: {error}", stacklevel=3)


def _is_foreign(folder: Path) -> bool:
    """Whether a folder never was a checkpoint: it holds things, and nothing of one."""
    names = {path.name for path in folder.iterdir()}
    return bool(names) and names.isdisjoint((storage.MANIFEST, TENSORS))


def _found(run: Path) -> list[Path]:
    """The checkpoints' folders, oldest first."""
    named = [
        path
        for path in (run / CHECKPOINTS).glob("step-*")
        if re.fullmatch(r"step-\d{8,}", path.name) and path.is_dir()
    ]
    return sorted(named, key=lambda path: int(path.name.removeprefix("step-")))
