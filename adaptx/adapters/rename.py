"""Give an adapter another name: in its manifest, its card and its folder. No torch here."""

from __future__ import annotations

import shutil
from pathlib import Path

from adaptx import storage
from adaptx.adapters import folder as layout
from adaptx.adapters.card import name_lines
from adaptx.errors import FolderError, OutputExists


def rename_folder(folder: Path, name: str) -> Path:
    """Rename an adapter and its folder, all or nothing; the new folder.

    The weights keep the sha256 they had; the card only has its titles changed. What PEFT wrote is
    called as its folder is. Raises OptionError for a name that no folder can have, OutputExists,
    FolderError.
    """
    layout.check_name(name)
    if not folder.is_dir():
        raise FolderError(f"There is no adapter folder {folder}.")
    folder = folder.resolve()
    target = folder.with_name(name)
    if target.exists():
        raise OutputExists(f"{target} exists already: choose another name.")
    storage.check_output(target, overwrite=False)
    if not (folder / storage.MANIFEST).is_file() and (folder / layout.CONFIG).is_file():
        return folder.rename(target)
    facts, manifest = layout.read_facts(folder)
    with storage.new_folder(target) as made:
        for path in folder.iterdir():
            if path.is_dir():
                shutil.copytree(path, made / path.name, symlinks=True)
            else:
                shutil.copy2(path, made / path.name, follow_symlinks=False)
        if (card := made / layout.CARD).is_file():
            lines = card.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
            new = dict(zip(name_lines(facts.name), name_lines(name), strict=True))
            titled = [new.get(line, line) for line in lines]
            card.write_text("\n".join(titled), encoding="utf-8", errors="surrogateescape")
            manifest["files"][layout.CARD] = storage.sha256(card)
        storage.write_json(made / storage.MANIFEST, manifest | {"name": name})
    hidden = folder.with_name(f".{folder.name}.renamed")
    folder.rename(hidden)  # so that no half of an adapter is seen while it is removed
    shutil.rmtree(hidden)
    return target
