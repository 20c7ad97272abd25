"""An adapter's name -> its folder: a local one, or a repository of the Hub. No torch here."""

from __future__ import annotations

from pathlib import Path

from adaptx import hub, storage
from adaptx.adapters.folder import CONFIG, FILES, WEIGHTS
from adaptx.errors import FolderError


def find_folder(name: str | Path, revision: str | None = None) -> Path:
    """The folder of an adapter: local, or `user/name[@revision]` of the Hub (downloaded once).

    Raises FolderError where there is none, HubError where the Hub doesn't give it.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    asked = hub.split(str(name))
    if asked is None or folder.exists():
        raise FolderError(f"There is no adapter folder {name}.")
    repository, named = asked
    folder = hub.download(repository, FILES, revision or named)
    whole = (storage.MANIFEST,), (CONFIG, WEIGHTS)
    if not any(all((folder / file).is_file() for file in files) for files in whole):
        raise FolderError(
            f"The Hub's repository {repository!r} holds no adapter that adaptx reads: it has "
            f"neither {storage.MANIFEST} nor PEFT's {CONFIG} and {WEIGHTS}. Weights as a pickle "
            f"(adapter_model.bin) are not downloaded: save them with PEFT's "
            f"save_pretrained(…, safe_serialization=True)."
        )
    return folder
