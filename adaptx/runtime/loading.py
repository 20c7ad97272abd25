"""An adapter's folder, read without torch: every file checked, nothing executed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from adaptx import storage
from adaptx.adapters import folder as layout
from adaptx.errors import FingerprintError, FolderError, choices
from adaptx.runtime.head import Head, is_factor
from adaptx.runtime.layout import BundleFacts
from adaptx.tasks import Task, task_from_json
from adaptx.tasks.base import no_answers


@dataclass(frozen=True)
class Loaded:
    """An adapter as a bank takes it.

    rank   the largest of its sites; 0 for a probe
    sites  at each one A fp32 `[R, I]`, B fp32 `[O, R]`; empty once they are in the bank
    """

    facts: layout.Facts
    task: Task | None
    head: Head | None
    rank: int = 0
    sites: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    @property
    def pooling(self) -> str:
        """What becomes of token states: "mean", "cls", or "tokens", all of them."""
        return self.task.pooling if self.task else "mean"


def load(folder: str | Path, bundle: BundleFacts) -> Loaded:
    """The adapter of a folder, for a bundle.

    Raises FolderError for a folder that is damaged, that PEFT wrote, or whose method a bank can't
    hold, and FingerprintError for another encoder's.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FolderError(f"There is no adapter folder {folder}.")
    if not (folder / storage.MANIFEST).is_file() and (folder / layout.CONFIG).is_file():
        raise FolderError(
            f"{folder} was written by PEFT, which doesn't say what it was trained on: make an "
            f"adapter of it first, with `adaptx adapters import {folder} -o … --encoder "
            f"{bundle.encoder}`."
        )
    facts, manifest = layout.read_facts(folder)
    if facts.fingerprint != bundle.fingerprint:
        raise FingerprintError(
            facts.name, facts.encoder, facts.fingerprint, bundle.encoder, bundle.fingerprint
        )
    if facts.way not in ("bank", "head"):
        raise FolderError(
            f"Adapter {facts.name!r} is of the method {facts.method!r}, which a bank can't hold: "
            f"serve it merged, with `adaptx export {folder} --merged`."
        )
    for name in manifest["files"]:  # what stands deeper is none of the adapter's
        if Path(name).name == name and name != layout.WEIGHTS:
            storage.check_file(folder, name, manifest)
    sites = {}
    if facts.way == "bank":
        if wrong := [site for site, scale in facts.scales.items() if not is_factor(scale)]:
            raise FolderError(
                f"{folder / storage.MANIFEST}: the scale at {choices(wrong)} can't be "
                f"{facts.scales[wrong[0]]!r}: restore the folder from where it came."
            )
        path = storage.check_file(folder, layout.WEIGHTS, manifest)
        sites = layout.site_tensors(path, list(facts.scales))
    task = task_from_json(facts.task) if facts.task else None
    if task is not None and not task.answers:
        raise FolderError(no_answers(facts.name, task))
    head = None
    if task is not None and task.has_head:
        if layout.HEAD not in manifest["files"]:
            raise FolderError(f"Adapter {facts.name!r} has a task, but no {layout.HEAD}.")
        if not task.outputs:
            raise FolderError(f"Adapter {facts.name!r} has a task without labels.")
        tensors = layout.head_tensors(folder / layout.HEAD, task.outputs, facts.head)
        head = Head(tensors, facts.head)
        if head.width != bundle.hidden_size:
            raise FolderError(
                f"Adapter {facts.name!r} has a head for {head.width} inputs, and the encoder is "
                f"{bundle.hidden_size} wide."
            )
    rank = max((a.shape[0] for a, _ in sites.values()), default=0)
    return Loaded(facts, task, head, rank, sites)
