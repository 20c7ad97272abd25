"""A bundle's folder, described once. N slots, R rank, I and O a site's widths.

    bundle.json                 `BundleFacts`, their own sha256, and that of every file
    model.onnx, model.onnx.data the graph (see adaptx.onnx.build) and its weights
    lone.onnx                   the same for a lone row (adaptx.onnx.lone); BERT-shaped only
    check.onnx                  the same graph, which also says how much saturates; int8 only
    tokenizer.json
    probe.safetensors           token ids, and torch's fp32 outputs for them (adaptx.runtime.verify)
    adapters/<name>/…           adapters' folders

A bank is a graph input `[N, R of each part, width]`, parts of one width behind each other:

    a   A `[R, I]`, as PEFT stores it
    b   B^T `[R, O]`, times the adapter's scale at that site
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from adaptx import storage
from adaptx.adapters.folder import check_name
from adaptx.errors import FolderError, OptionError

MODEL, LONE, CHECK = "model.onnx", "lone.onnx", "check.onnx"
TOKENIZER, PROBE = "tokenizer.json", "probe.safetensors"
WEIGHTS = MODEL + ".data"
ADAPTERS = "adapters"
INPUT_IDS, MASK, IDS = "input_ids", "attention_mask", "adapter_ids"
HIDDEN, MEAN, SATURATION = "hidden", "mean", "saturation"
DTYPES = ("float32", "float16")
QUANTIZATIONS = ("int8", "fp32")
# Where a tensor's weights lie, as onnx writes it: tag and length, of the entry, its key, its value.
# Of two values protobuf takes the later one: the entry's length leaves no room for another.
_LOCATION = b"\x0a\x08location\x12" + bytes([len(WEIGHTS)]) + WEIGHTS.encode()
_LOCATION = b"\x6a" + bytes([len(_LOCATION)]) + _LOCATION


class Part(NamedTuple):
    """What a bank holds of a site: its "a" or its "b"."""

    site: str
    kind: str


@dataclass(frozen=True)
class BankSpec:
    """A bank that the graph takes: its parts in their order, and how wide they are."""

    name: str
    parts: tuple[Part, ...]
    width: int

    @property
    def sites(self) -> list[str]:
        """The sites of its parts, each once."""
        return list(dict.fromkeys(part.site for part in self.parts))

    @property
    def dimensions(self) -> list[str | int]:
        """The shape of the graph's input; names are dimensions that may vary."""
        return ["slots", f"rank_{len(self.parts)}", self.width]


@dataclass(frozen=True)
class BundleFacts:
    """What bundle.json says.

    bank_dtype    of the banks that the graph takes
    quantization  "int8" or "fp32"
    saturation    of int8: the largest share of values at the ends of their range that the bundle's
                  own adapters have at any site
    parity        the report of the export: how many probe texts, and each graph's by adapter
    vocabulary    of a cut vocabulary: rows kept, rows there were, coverage by language; else {}
    """

    encoder: str
    fingerprint: str
    prefix: str
    hidden_size: int
    pad_id: int
    max_length: int
    banks: tuple[BankSpec, ...]
    bank_dtype: str
    quantization: str
    adapters: tuple[str, ...]
    saturation: float = 0.0
    parity: dict[str, Any] = field(default_factory=dict)
    vocabulary: dict[str, Any] = field(default_factory=dict)

    @property
    def sites(self) -> list[str]:
        """Where adapters may attach."""
        return [part.site for bank in self.banks for part in bank.parts if part.kind == "b"]


_KINDS: dict[str, type | tuple[type, ...]] = {
    "encoder": str,
    "fingerprint": str,
    "prefix": str,
    "hidden_size": int,
    "pad_id": int,
    "max_length": int,
    "bank_dtype": str,
    "quantization": str,
    "saturation": (int, float),
    "parity": dict,
    "vocabulary": dict,
}


def write_bundle(folder: Path, facts: BundleFacts) -> None:
    """Write bundle.json, last of all: the sha256 of every file stands in it."""
    storage.write_manifest(folder, "bundle", asdict(facts))
    path = folder / storage.BUNDLE
    storage.write_json(path, {**storage.read_json(path), "sha256": ""})
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(_said(""), _said(_digest(text))), encoding="utf-8")


def _said(digest: object) -> str:
    """How the digest stands in bundle.json: quotes within a string would be escaped."""
    return f'"sha256": "{digest}"'


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_bundle(folder: Path) -> tuple[BundleFacts, dict[str, Any]]:
    """What bundle.json says, and the manifest itself; no file is read yet (see check_files)."""
    if not folder.is_dir():
        raise FolderError(f"There is no bundle {folder}: make one with `adaptx export`.")
    manifest = storage.read_manifest(folder, "bundle")
    path = folder / storage.BUNDLE
    said = manifest.get("sha256")
    text = path.read_text(encoding="utf-8")
    if _digest(text.replace(_said(said), _said(""))) != said:
        raise FolderError(
            f"{path} was changed or damaged since it was written: restore the bundle from where it "
            f"came, or export it again."
        )
    for name, kinds in _KINDS.items():
        value = manifest.get(name)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise FolderError(f"{path}: {name} can't be {value!r}.")
    for name, allowed in (("bank_dtype", DTYPES), ("quantization", QUANTIZATIONS)):
        if manifest[name] not in allowed:
            raise FolderError(f"{path}: {name} can't be {manifest[name]!r}.")
    try:
        banks = tuple(
            BankSpec(
                str(b["name"]),
                tuple(Part(str(site), str(kind)) for site, kind in b["parts"]),
                int(b["width"]),
            )
            for b in manifest["banks"]
        )
        adapters = tuple(map(check_name, manifest["adapters"]))  # each is a folder's name too
    except (KeyError, TypeError, ValueError, OptionError) as error:
        raise FolderError(f"{path} isn't whole: {error!r}.") from None
    known = {name: manifest[name] for name in _KINDS}
    return BundleFacts(**known, banks=banks, adapters=adapters), manifest


def check_locations(folder: Path) -> None:
    """Refuse a graph whose weights would be read from anywhere but the bundle's own file.

    onnxruntime refuses it too, in its newer releases; here the key `location` is looked for in the
    files as they are, behind the last byte of its length, and must stand in an entry that is whole.
    """
    for name in (MODEL, LONE, CHECK):
        path = folder / name
        data = path.read_bytes() if path.is_file() else b""
        for found in re.finditer(rb"[\x08\x00]location", data):
            if not data.startswith(_LOCATION, found.start() - 3):
                raise FolderError(
                    f"{path} takes weights from elsewhere than {WEIGHTS}: it isn't opened."
                )


def check_files(folder: Path, manifest: Mapping[str, Any], *, but: tuple[str, ...] = ()) -> None:
    """Compare the sha256 of every file that the manifest lists, and refuse one that it doesn't.

    Of an adapter's folder only its own manifest: that has the others', and they are compared when
    the adapter is read.
    """
    for name in sorted(set(manifest["files"]) - set(but)):
        if not name.startswith(f"{ADAPTERS}/") or name.endswith(f"/{storage.MANIFEST}"):
            storage.check_file(folder, name, dict(manifest))
    listed = {*manifest["files"], storage.BUNDLE}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if (path.is_symlink() or not path.is_dir()) and name not in listed:
            raise FolderError(
                f"{folder} has a file that {storage.BUNDLE} doesn't list, {name}: take it out, or "
                f"export the bundle again."
            )
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise FolderError(
                f"{path} leads out of {folder}, so it isn't read: put the file itself there, or "
                f"export the bundle again."
            )
