"""Writing an adapter's folder, and reading it (see adaptx.adapters.folder for what is in it)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from adaptx import storage
from adaptx.adapters import folder as layout
from adaptx.adapters import own_model
from adaptx.adapters.adapter import Adapter
from adaptx.adapters.head import Head
from adaptx.adapters.own_model import Full
from adaptx.adapters.peft_config import read_config, read_sites
from adaptx.encoder.encoder import Encoder
from adaptx.encoder.opening import load_model
from adaptx.errors import FolderError, OptionError
from adaptx.tasks import Task, task_from_json


def write(adapter: Adapter, folder: Path, *, overwrite: bool) -> Path:
    """Write an adapter's folder, whole or not at all."""
    from safetensors.torch import save_file

    with storage.new_folder(folder, overwrite=overwrite, kind="adapter") as made:
        if adapter.sites:
            tensors = {}
            for site, part in adapter.sites.items():
                tensors[f"{layout.PREFIX}{site}.lora_A.weight"] = part.a
                tensors[f"{layout.PREFIX}{site}.lora_B.weight"] = part.b
            _write_peft(adapter, made, tensors)
        elif adapter.facts.way == "own pass" and adapter.model is not None:
            _write_peft(adapter, made, own_model.peft_state(adapter.model))
        elif adapter.model is not None:
            own_model.save_full(adapter.model, adapter.source, made)
        if adapter.head is not None:
            save_file(_plain(adapter.head.state_dict()), made / layout.HEAD, {"format": "pt"})
        layout.write_facts(made, adapter.facts)
    return folder


def read(folder: Path, encoder: Encoder | None, labels: Sequence[str] | None) -> Adapter:
    """Open an adapter's folder; the arguments and errors are those of `Adapter.load`."""
    if not folder.is_dir():
        raise FolderError(f"There is no adapter folder {folder}.")
    if not (folder / storage.MANIFEST).is_file() and (folder / layout.CONFIG).is_file():
        from adaptx.adapters.peft_folder import from_peft

        if encoder is None:
            raise FolderError(
                f"{folder} was written by PEFT and doesn't say which encoder it fits: give the "
                f"encoder too, as in Adapter.load(folder, encoder)."
            )
        return from_peft(folder, encoder, labels).to(encoder.device)
    if labels is not None:
        raise OptionError(f"{folder} says its labels itself: leave `labels` out.")
    facts, manifest = layout.read_facts(folder)
    task = task_from_json(facts.task) if facts.task is not None else None
    head = _read_head(folder, facts, manifest, task)
    if facts.way in ("own pass", "model"):
        adapter = _read_own(folder, encoder, facts, manifest, head, task)
    else:
        adapter = _read_sites(folder, facts, manifest, head, task)
    if encoder is not None:
        adapter.check_encoder(encoder)
        adapter.check_shapes(encoder)
        adapter.to(encoder.device)
    return adapter.eval()


def _write_peft(adapter: Adapter, folder: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    config: Any = copy.deepcopy(adapter.config)
    config.inference_mode = True
    config.save_pretrained(str(folder))
    save_file(_plain(tensors), folder / layout.WEIGHTS, {"format": "pt"})


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors writes them: on the CPU, contiguous, floats in fp32."""
    found = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).clone().contiguous()
        for name, tensor in found.items()
    }


def _read_head(
    folder: Path, facts: layout.Facts, manifest: dict[str, Any], task: Task | None
) -> Head | None:
    if task is None or not task.has_head:
        return None
    path = storage.check_file(folder, layout.HEAD, manifest)
    return Head.of(layout.head_tensors(path, task.outputs, facts.head), facts.head, path)


def _read_sites(
    folder: Path,
    facts: layout.Facts,
    manifest: dict[str, Any],
    head: Head | None,
    task: Task | None,
) -> Adapter:
    """A LoRA, or a probe, which is a head alone."""
    if facts.method == "probe":
        return Adapter(facts, None, head, task)
    layout.refuse_pickle(folder)
    config = read_config(storage.check_file(folder, layout.CONFIG, manifest))
    path = storage.check_file(folder, layout.WEIGHTS, manifest)
    sites = read_sites(path, list(facts.scales), config)
    if facts.scales != {name: site.scale for name, site in sites.items()}:
        raise FolderError(
            f"{folder}: the scales in {storage.MANIFEST} aren't those of {layout.CONFIG}."
        )
    return Adapter(facts, config, head, task, sites=sites)


def _read_own(
    folder: Path,
    encoder: Encoder | None,
    facts: layout.Facts,
    manifest: dict[str, Any],
    head: Head | None,
    task: Task | None,
) -> Adapter:
    """An adapter that brings its own model: PEFT's layers, or every weight."""
    if encoder is None:
        raise FolderError(
            f"The {facts.method} adapter in {folder} brings layers of its own for its "
            f"encoder, {facts.encoder!r}: give it, as in Adapter.load(folder, encoder)."
        )
    Adapter(facts, None, head, task).check_encoder(encoder)
    if facts.way == "own pass":
        layout.refuse_pickle(folder)
        config = read_config(storage.check_file(folder, layout.CONFIG, manifest))
        path = storage.check_file(folder, layout.WEIGHTS, manifest)
        model = own_model.peft_model(encoder, config)
        own_model.load_peft_state(model, own_model.read_torch_tensors(path), path)
        return Adapter.of(encoder, facts, config, head, task, model=model)
    for name in manifest["files"]:
        if name.endswith((".safetensors", ".json")):
            storage.check_file(folder, name, manifest)
    _, model = load_model(folder)
    adapter = Adapter.of(encoder, facts, Full(), head, task, model=model.eval())
    adapter.source = folder
    return adapter
