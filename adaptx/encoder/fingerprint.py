"""An encoder's fingerprint: which tensors, settings and vocabulary an adapter was trained on.

sha256 over (1) the base tensors as fp32, by name, without pooler and buffers; (2) the config keys
that change results; (3) the vocabulary with scores or merges. So a folder saved again, in another
dtype that holds the same values, or by another version of transformers keeps its fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from adaptx import storage
from adaptx.encoder.families import settings


def fingerprint(model: nn.Module, config: dict[str, Any], tokenizer_json: str) -> str:
    """The fingerprint, `sha256:` and 64 hexadecimal digits, of an unwrapped fp32 model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters()):
        if name.split(".")[0] == "pooler":
            continue
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.detach().float().cpu().contiguous().numpy()).cast("B"))
    said = {**settings(config), "is_decoder": False}
    digest.update(json.dumps(said, sort_keys=True).encode())
    digest.update(json.dumps(_vocabulary(tokenizer_json), ensure_ascii=False).encode())
    return "sha256:" + digest.hexdigest()


def _vocabulary(tokenizer_json: str) -> Any:
    tokenizer = json.loads(tokenizer_json)
    model, added = tokenizer["model"], tokenizer.get("added_tokens", [])
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        vocab = sorted(vocab.items(), key=lambda item: item[1])
    special = sorted((token["id"], token["content"]) for token in added)
    return [vocab, model.get("merges"), special]


class FingerprintCache:
    """Fingerprints already computed, by folder and the size and time of its files."""

    def __init__(self, folder: Path):
        files = sorted(path for path in folder.iterdir() if path.is_file())
        stats = [(path.name, s.st_size, s.st_mtime_ns) for path in files for s in [path.stat()]]
        key = hashlib.sha256(repr((str(folder.resolve()), stats)).encode()).hexdigest()
        self.path = storage.cache_dir() / "fingerprints" / f"{key[:32]}.txt"

    def read(self) -> str | None:
        """The fingerprint, or None when it isn't cached (or its file isn't whole)."""
        try:
            text = self.path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return text if text.startswith("sha256:") and len(text) == 71 else None

    def write(self, fingerprint: str) -> None:
        """Keep a fingerprint; a cache that can't be written costs time, not the run."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_suffix(f".{os.getpid()}.part")
            part.write_text(fingerprint + "\n", encoding="ascii")
            part.replace(self.path)
        except OSError:
            pass
