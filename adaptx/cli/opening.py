"""What several commands do first: open adapters, and the encoder that they name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adaptx import storage
from adaptx.adapters import folder as layout
from adaptx.errors import FolderError

if TYPE_CHECKING:
    from adaptx.adapters.adapter import Adapter
    from adaptx.encoder.encoder import Encoder

DEFAULT_ENCODER = "bundled:multilingual-e5-small"
NONE = "none"


def encoder_name(folder: Path) -> str:
    """The encoder that an adapter's folder names, ours or PEFT's."""
    if (folder / storage.MANIFEST).is_file():
        return layout.read_facts(folder)[0].encoder
    if not folder.is_dir():
        raise FolderError(f"There is no adapter folder {folder}.")
    name = storage.read_json(folder / layout.CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise FolderError(f"{folder} doesn't say which encoder it fits: name it with --encoder.")
    return name


def open_each(folders: Sequence[Path], encoder: str | None) -> list[tuple[Encoder, Adapter]]:
    """Each folder's adapter with its encoder; adapters of one encoder share it."""
    names = [encoder or encoder_name(folder) for folder in folders]

    from adaptx.adapters.adapter import Adapter
    from adaptx.encoder.encoder import Encoder

    encoders = {name: Encoder.from_pretrained(name) for name in dict.fromkeys(names)}
    return [
        (encoders[name], Adapter.load(folder, encoders[name]))
        for folder, name in zip(folders, names, strict=True)
    ]


def open_adapter(folder: Path, encoder: str | None) -> tuple[Encoder, Adapter]:
    """The encoder, and the adapter of one folder."""
    return open_each([folder], encoder)[0]


def open_adapters(
    folders: Sequence[str], encoder: str | None
) -> tuple[Encoder, list[Adapter | None]]:
    """The encoder, and the adapter of each folder ("none" gives None)."""
    paths = {folder: Path(folder) for folder in folders if folder != NONE}
    name = encoder or next((encoder_name(path) for path in paths.values()), DEFAULT_ENCODER)

    from adaptx.adapters.adapter import Adapter
    from adaptx.encoder.encoder import Encoder

    opened = Encoder.from_pretrained(name)
    adapters = {folder: Adapter.load(path, opened) for folder, path in paths.items()}
    return opened, [adapters.get(folder) for folder in folders]
