"""Folders that are written whole or not at all, and read without trusting them. No torch here.

Everything adaptx writes is a folder with a manifest, `adaptx.json` (a bundle's is `bundle.json`):

    {"schema": 1, "kind": "adapter" | "encoder" | "merged" | "data" …,
     "files": {"<name>": "<sha256>"}}

It is made in a temporary sibling, fsynced, then renamed into place: a reader sees the old folder
or the new one (or, for the instant between two renames, none), never a part. Only JSON and
safetensors are read back; no pickle, no code.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from adaptx.errors import FolderError, OptionError, OutputExists

_NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
_INTEGERS = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"}
MANIFEST, BUNDLE = "adaptx.json", "bundle.json"
SCHEMA = 1


def cache_dir() -> Path:
    """Where adaptx keeps what it can make again: `$ADAPTX_CACHE`, else the user's cache folder."""
    if chosen := os.environ.get("ADAPTX_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "adaptx"


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_output(folder: str | Path, overwrite: bool, kind: str | None = None) -> Path:
    """Refuse, before any work is done, an output folder that may not be (re)placed.

    Raises OutputExists when the folder exists and `overwrite` is off, and, whatever `overwrite`
    says, when it holds things that adaptx didn't write, or another kind of thing than `kind`:
    replacing it would delete them.
    """
    folder = Path(os.path.realpath(folder))
    above = next(path for path in folder.parents if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise OutputExists(f"{folder} can't be made: {above} isn't a folder you may write to.")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return folder
    if not any((folder / name).is_file() for name in (MANIFEST, BUNDLE)):
        raise OutputExists(
            f"{folder} exists and wasn't written by adaptx (it has no {MANIFEST}), so it won't be "
            f"replaced: choose another output folder, or move this one away yourself."
        )
    if not overwrite:
        raise OutputExists(
            f"{folder} exists already: choose another output folder, or pass --overwrite "
            f"(overwrite=True) to replace it."
        )
    found = _kind(folder)
    if kind is not None and found not in (None, kind):
        raise OutputExists(
            f"{folder} holds a {found!r}, and a {kind!r} would replace it: choose another output "
            f"folder, or delete this one yourself."
        )
    return folder


def check_file_output(path: Path, overwrite: bool) -> None:
    """Refuse, before any work is done, a file that can't be written or may not be replaced.

    Raises OutputExists for one that exists while `overwrite` is off, OptionError for a folder, or
    a name in a folder that isn't there.
    """
    if not path.parent.is_dir():
        raise OptionError(f"{path} can't be written: there is no folder {path.parent}.")
    if path.is_dir():
        raise OptionError(f"{path} can't be written: it is a folder. Name a file.")
    if path.exists() and not overwrite:
        raise OutputExists(f"{path} exists already: name another file, or pass --overwrite.")


def _kind(folder: Path) -> str | None:
    """What a manifest says a folder holds; None for one that can't be read."""
    try:
        name = BUNDLE if (folder / BUNDLE).is_file() else MANIFEST
        return read_json(folder / name).get("kind")
    except FolderError:
        return None


@contextmanager
def new_folder(
    folder: str | Path, *, overwrite: bool = False, kind: str | None = None
) -> Iterator[Path]:
    """A temporary sibling of `folder` to write into; renamed to `folder` when the block succeeds.

    When the block raises, nothing is left behind and an older folder stays as it was.
    """
    from safetensors import SafetensorError

    folder = check_output(folder, overwrite, kind)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unique = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    made, old = (folder.parent / f".{folder.name}.{kind}-{unique}" for kind in ("new", "old"))
    made.mkdir()
    try:
        yield made
        for path in [*made.rglob("*"), made]:
            fsync(path)
        if folder.exists():
            folder.rename(old)
        made.rename(folder)
        fsync(folder.parent)
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_ROOM:
            raise
        raise FolderError(
            f"{folder} can't be written ({error}): is the disk full? Nothing was left behind."
        ) from error
    finally:  # whatever was raised, an interrupt too
        shutil.rmtree(made, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def fsync(path: Path) -> None:
    """Have a file, or a folder's names, on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def manifest_name(kind: str) -> str:
    """The manifest's file name in a folder of a kind."""
    return BUNDLE if kind == "bundle" else MANIFEST


def write_manifest(
    folder: Path, kind: str, facts: dict[str, Any], names: Collection[str] | None = None
) -> None:
    """Write the manifest with `facts` and the sha256 of every file that stands below `folder`; of
    those in `names` alone, where others may stand there that aren't ours.
    """
    manifest = folder / manifest_name(kind)
    found = folder.rglob("*") if names is None else (folder / name for name in names)
    paths = sorted(path for path in found if path.is_file() and path != manifest)
    files = {path.relative_to(folder).as_posix(): sha256(path) for path in paths}
    write_json(manifest, {"schema": SCHEMA, "kind": kind, **facts, "files": files})


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON that ends in a newline."""
    path.write_text(
        json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises FolderError when it is missing or isn't one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FolderError(f"{path.parent} has no {path.name}: is this the right folder?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise FolderError(f"{path} can't be read as JSON ({error}): {_RESTORE}") from error
    if not isinstance(value, dict):
        raise FolderError(f"{path} holds a JSON {type(value).__name__}, not an object: {_RESTORE}")
    return value


def read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    """The manifest of a folder, after its schema and kind have been checked."""
    path = folder / manifest_name(kind)
    manifest = read_json(path)
    if manifest.get("schema") != SCHEMA:
        raise FolderError(
            f"{folder} has schema {manifest.get('schema')!r}, and this adaptx reads {SCHEMA}: "
            f"upgrade adaptx, or write the folder again."
        )
    if manifest.get("kind") != kind:
        raise FolderError(f"{folder} holds a {manifest.get('kind')!r}, not a {kind!r}.")
    if not isinstance(manifest.get("files"), dict):
        raise FolderError(f"{path} lists no files: {_RESTORE}")
    return manifest


def check_file(folder: Path, name: str, manifest: dict[str, Any]) -> Path:
    """The path of a file that the manifest lists, after its sha256 has been compared."""
    path, wanted = folder / name, manifest["files"].get(name)
    said = manifest_name(manifest["kind"])
    if wanted is None or not path.is_file():
        raise FolderError(f"{path} is missing (or {said} doesn't list it): {_RESTORE}")
    # The Hub's cache links an adapter's files to where it keeps them; nothing links a bundle's.
    if manifest["kind"] == "bundle" and not path.resolve().is_relative_to(folder.resolve()):
        raise FolderError(f"{path} leads out of {folder}, so it isn't read: {_RESTORE}")
    found = sha256(path)
    if found != wanted:
        raise FolderError(
            f"{path} was changed or damaged since it was written (sha256 {found}, and {said} "
            f"says {wanted}): {_RESTORE}"
        )
    return path


def read_tensors(path: Path, *, integers: bool = False) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file as fp32 (widening f16 and bf16 is exact).

    With `integers`, arrays of whole numbers may be among them. Raises FolderError when the file is
    a pickle, damaged, of another dtype, or not finite.
    """
    from safetensors import SafetensorError, deserialize

    try:
        data = path.read_bytes()
    except OSError as error:
        raise FolderError(f"{path} can't be read ({error.strerror}): {_RESTORE}") from error
    try:
        tensors = {name: _array(**view, integers=integers) for name, view in deserialize(data)}
    except (SafetensorError, KeyError, ValueError) as error:
        if data[8:9] != b"{" and (data[:1] == b"\x80" or data[:2] == b"PK"):
            raise FolderError(
                f"{path} is a pickle, not safetensors. A pickle can run code when it is opened, so "
                f"adaptx reads none: save it as safetensors where it was made."
            ) from None
        raise FolderError(f"{path} is damaged or truncated ({error}): {_RESTORE}") from error
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise FolderError(f"{path}: tensor {name!r} has NaN or infinite values: {_RESTORE}")
    return tensors


def _array(dtype: str, shape: list[int], data: bytes, integers: bool) -> np.ndarray:
    if dtype == "BF16":  # the upper half of an fp32
        array = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    elif dtype in ("F16", "F32", "F64"):
        array = np.frombuffer(data, f"<f{int(dtype[1:]) // 8}").astype(np.float32)
    elif integers and dtype in _INTEGERS:
        array = np.frombuffer(data, _INTEGERS[dtype])
    else:
        raise ValueError(f"a tensor has the dtype {dtype}; F32, F16 or BF16 is expected")
    return array.reshape(shape)


_RESTORE = "restore the folder from where it came, or make it again."
