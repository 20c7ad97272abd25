"""What adapter folders say of themselves, and what is damaged in them. No torch here.

Folders that adaptx wrote and folders that PEFT wrote (no adaptx.json) are read alike.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adaptx import storage
from adaptx.adapters import folder as layout
from adaptx.adapters.expressed import unexpressed
from adaptx.errors import FolderError
from adaptx.tasks import task_from_json

_ABOVE_LAYER = re.compile(r"^.*?\b\d+\.")  # "encoder.layer.3." of a site's path


def is_adapter(folder: Path) -> bool:
    """Whether a folder is an adapter's, whole or damaged."""
    if (folder / storage.MANIFEST).is_file():
        try:
            return storage.read_json(folder / storage.MANIFEST).get("kind", "adapter") == "adapter"
        except FolderError:
            return True
    return any((folder / name).is_file() for name in (layout.CONFIG, layout.WEIGHTS, layout.HEAD))


def find(folder: Path) -> list[Path]:
    """The adapter folders at a folder, or one or two levels below it, sorted.

    Raises FolderError when there is no such folder.
    """
    if not folder.is_dir():
        raise FolderError(f"There is no folder {folder}: name one that holds adapters.")
    found, level = [], [folder]
    for depth in range(3):
        found += [path for path in level if is_adapter(path)]
        above = [path for path in level if path not in found] if depth < 2 else []
        level = [path for one in above for path in _folders_in(one)]
    return sorted(found)


def _folders_in(folder: Path) -> list[Path]:
    try:
        return [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    except OSError:  # one that this user may not list holds nothing for them
        return []


def about(folder: Path) -> tuple[layout.Facts, dict[str, Any] | None]:
    """A folder's facts, and its manifest: None for PEFT's, whose facts are what its config says.

    Raises FolderError.
    """
    if (folder / storage.MANIFEST).is_file() or not (folder / layout.CONFIG).is_file():
        return layout.read_facts(folder)
    config = storage.read_json(folder / layout.CONFIG)
    method = "dora" if config.get("use_dora") else str(config.get("peft_type")).lower()
    facts = layout.Facts(
        name=layout.folder_name(folder),
        method=method,
        encoder=str(config.get("base_model_name_or_path") or ""),
        fingerprint="",
        prefix="",
        max_length=None,
        language=None,
        task=None,
    )
    return facts, None


def needed(facts: layout.Facts, manifest: Mapping[str, Any] | None) -> list[str]:
    """The files that must be there: all that are listed but the card, and what the facts need."""
    names = set(manifest["files"]) if manifest else {layout.CONFIG, layout.WEIGHTS}
    if facts.scales:
        names |= {layout.CONFIG, layout.WEIGHTS}
    if facts.task is not None and task_from_json(facts.task).has_head:
        names.add(layout.HEAD)
    return sorted(names - {layout.CARD})


def row(folder: Path) -> dict[str, Any]:
    """One line of a list: the facts in short, and what is plainly damaged (nothing is hashed)."""
    found: dict[str, Any] = {
        "folder": str(folder), "name": folder.name, "method": None, "way": None, "language": None,
        "task": None, "labels": None, "encoder": None, "score": None, "metric": None,
        "megabytes": sum(path.stat().st_size for path in _files(folder)) / 1e6, "damage": None,
    }  # fmt: skip
    try:
        facts, manifest = about(folder)
        if missing := [name for name in needed(facts, manifest) if not (folder / name).is_file()]:
            found["damage"] = f"{folder} lacks {', '.join(missing)}."
    except FolderError as error:
        return found | {"damage": str(error)}
    labels = (facts.task or {}).get("labels")
    metric, score = _dev_score(facts.training)
    return found | {
        "name": facts.name,
        "method": facts.method,
        "way": _way(folder, facts, manifest),
        "language": facts.language,
        "task": (facts.task or {}).get("kind"),
        "labels": len(labels) if isinstance(labels, list) else None,
        "encoder": facts.encoder,
        "score": score,
        "metric": metric,
    }


def details(folder: Path) -> dict[str, Any]:
    """All that a person wants to know of one adapter.

    Beside its facts: `way`, `weights` (how many), `sites` (see `_sites`), `head` (shapes), and
    `files` with their bytes and state: "whole", "changed", "missing" or "unlisted" (no sha256).
    Raises FolderError when the folder doesn't even say what it is.
    """
    facts, manifest = about(folder)
    listed = manifest["files"] if manifest else {}
    names = sorted({*listed, *(path.name for path in _files(folder))} - {storage.MANIFEST})
    shapes = {name: _shapes(folder / name) for name in names if name.endswith(".safetensors")}
    said = asdict(facts)
    scales = said.pop("scales")
    return said | {
        "folder": str(folder),
        "written_by": "adaptx" if manifest else "PEFT",
        "way": _way(folder, facts, manifest),
        "weights": sum(math.prod(shape) for file in shapes.values() for shape in file.values()),
        "sites": _sites(shapes.get(layout.WEIGHTS, {}), scales),
        "head": shapes.get(layout.HEAD, {}),
        "files": [_file(folder / name, listed) for name in names],
    }


def damage(folder: Path) -> list[str]:
    """What is wrong with an adapter's folder, a paragraph each; empty when it is whole.

    Every file is held against its sha256 (the card may be edited), every tensor must be finite,
    and LoRA's and the head's must have the names and shapes that opening them needs.
    """
    try:
        facts, manifest = about(folder)
        names = needed(facts, manifest)
    except FolderError as error:
        return [str(error)]
    said = []
    for name in names:
        try:
            _check(folder, name, facts, manifest)
        except FolderError as error:
            said.append(str(error))
    return said


def _check(folder: Path, name: str, facts: layout.Facts, manifest: dict[str, Any] | None) -> None:
    path = folder / name
    if path.parent != folder or not path.name:  # nothing outside the folder is read
        raise FolderError(f"{folder / storage.MANIFEST} lists {name!r}, which is no file's name.")
    if manifest is not None:
        storage.check_file(folder, name, manifest)
    elif name == layout.WEIGHTS:
        layout.refuse_pickle(folder)
    if name == layout.WEIGHTS and facts.scales:
        layout.site_tensors(path, list(facts.scales))
    elif name == layout.HEAD and facts.task is not None:
        layout.head_tensors(path, task_from_json(facts.task).outputs, facts.head)
    elif path.suffix == ".safetensors":
        storage.read_tensors(path, integers=True)


def _way(folder: Path, facts: layout.Facts, manifest: dict[str, Any] | None) -> str:
    """`Facts.way`; PEFT's folders say no scales, and what a bank can't hold by their options."""
    if manifest is not None or facts.method != "lora":
        return facts.way
    return "own pass" if unexpressed(storage.read_json(folder / layout.CONFIG)) else "bank"


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()]


def _file(path: Path, listed: Mapping[str, Any]) -> dict[str, Any]:
    wanted = listed.get(path.name)
    if not path.is_file():
        return {"name": path.name, "bytes": 0, "state": "missing"}
    same = "whole" if storage.sha256(path) == wanted else "changed"
    state = same if path.name in listed else "unlisted"
    return {"name": path.name, "bytes": path.stat().st_size, "state": state}


def _shapes(path: Path) -> dict[str, list[int]]:
    """The shape of each tensor, from the file's header; {} for a file that can't be opened."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return {}


def _sites(shapes: Mapping[str, list[int]], scales: Mapping[str, float]) -> list[dict[str, Any]]:
    """One entry for all layers' sites of one name: how many, LoRA's ranks and scales.

    A tensor that isn't LoRA's stands for itself, with its shapes.
    """
    found: dict[str, dict[str, Any]] = {}
    for key, shape in shapes.items():
        name = key.removeprefix(layout.PREFIX)
        if name.endswith(".lora_B.weight"):
            continue
        site = name.removesuffix(".lora_A.weight")
        part = _ABOVE_LAYER.sub("", site)
        entry = found.setdefault(
            part, {"part": part, "count": 0, "ranks": set(), "scales": set(), "shapes": set()}
        )
        entry["count"] += 1
        if site == name:
            entry["shapes"].add(tuple(shape))
        else:
            entry["ranks"] |= {*shape[:1]}
            scale = scales.get(site)
            entry["scales"] |= {float(scale)} if isinstance(scale, (int, float)) else set()
    for entry in found.values():
        entry |= {key: sorted(entry[key]) for key in ("ranks", "scales")}
        entry["shapes"] = [list(shape) for shape in sorted(entry["shapes"])]
    return [found[part] for part in sorted(found)]


def _dev_score(training: Mapping[str, Any]) -> tuple[str | None, float | None]:
    """The metric that chose the best epoch, and its value on dev; a folder may say anything."""
    best, settings = training.get("best"), training.get("settings")
    metric = settings.get("metric") if isinstance(settings, dict) else None
    score = best.get(metric) if isinstance(best, dict) and isinstance(metric, str) else None
    return (metric, float(score)) if isinstance(score, (int, float)) else (None, None)
