"""What several commands do first: open adapters, and the encoder that they name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adaptx import storage
from adaptx.adapters import folder as layout
from adaptx.adapters import inspect
from adaptx.adapters.finding import find_folder
from adaptx.adapters.folder import NONE
from adaptx.errors import EncoderNotFound, FolderError

if TYPE_CHECKING:
    from adaptx.adapters.adapter import Adapter
    from adaptx.adapters.folder import Facts
    from adaptx.encoder.encoder import Encoder

DEFAULT_ENCODER = "bundled:multilingual-e5-small"


def encoder_name(folder: Path) -> str:
    """The encoder that an adapter's folder names, ours or PEFT's."""
    name = inspect.about(folder)[0].encoder
    if not name:
        raise FolderError(f"{folder} doesn't say which encoder it fits: name it with --encoder.")
    return name


def open_encoder(name: str, asked: str | None) -> Encoder:
    """The encoder that was asked for by --encoder, or that an adapter's folder names."""
    from adaptx.encoder.encoder import Encoder

    try:
        return Encoder.from_pretrained(name)
    except EncoderNotFound as error:
        if asked:
            raise
        said = f"{error} The adapter's folder names it: --encoder names another."
        raise EncoderNotFound(said) from error


def facts_with_task(folder: Path) -> Facts:
    """What an adapter's folder says, before anything is loaded.

    Raises FolderError for no folder and for PEFT's, OptionError for an adapter without a task.
    """
    from adaptx.evaluation.evaluate import no_head

    if not folder.is_dir():
        raise FolderError(f"There is no adapter folder {folder}.")
    if not (folder / storage.MANIFEST).is_file() and (folder / layout.CONFIG).is_file():
        raise FolderError(
            f"{folder} was written by PEFT and doesn't say its labels: make an adapter of it with "
            f"adaptx adapters import, and take that."
        )
    facts = layout.read_facts(folder)[0]
    if facts.task is None:
        raise no_head(facts.name)
    return facts


def open_each(names: Sequence[str | Path], encoder: str | None) -> list[tuple[Encoder, Adapter]]:
    """Each adapter, of a folder or `user/name[@revision]` on the Hub, with its encoder.

    Adapters of one encoder share it.
    """
    folders = [find_folder(name) for name in names]
    called = [encoder or encoder_name(folder) for folder in folders]

    from adaptx.adapters.adapter import Adapter

    encoders = {name: open_encoder(name, encoder) for name in dict.fromkeys(called)}
    return [
        (encoders[name], Adapter.load(folder, encoders[name]))
        for folder, name in zip(folders, called, strict=True)
    ]


def open_adapter(name: str | Path, encoder: str | None) -> tuple[Encoder, Adapter]:
    """The encoder, and the adapter of one folder or `user/name[@revision]` on the Hub."""
    return open_each([name], encoder)[0]


def open_together(folders: Sequence[Path], encoder: str | None) -> tuple[Encoder, list[Adapter]]:
    """One encoder, and the adapters on it: `encoder`, or the first that a folder names, our own
    before PEFT's.
    """
    called = encoder
    if called is None:
        facts = [inspect.about(folder)[0] for folder in folders]
        named = [one.encoder for one in sorted(facts, key=lambda one: not one.fingerprint)]
        called = next(filter(None, named), None) or encoder_name(folders[0])

    from adaptx.adapters.adapter import Adapter

    opened = open_encoder(called, encoder)
    return opened, [Adapter.load(folder, opened) for folder in folders]


def open_adapters(
    names: Sequence[str], encoder: str | None
) -> tuple[Encoder, list[Adapter | None]]:
    """The encoder, and the adapter of each folder or Hub name ("none" gives None)."""
    folders = {name: find_folder(name) for name in names if name != NONE}
    if not folders:
        from adaptx.encoder.encoder import Encoder

        return Encoder.from_pretrained(encoder or DEFAULT_ENCODER), [None] * len(names)
    opened, adapters = open_together(list(folders.values()), encoder)
    by_name = dict(zip(folders, adapters, strict=True))
    return opened, [by_name.get(name) for name in names]
