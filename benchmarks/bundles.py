"""Adapters and bundles that benchmarks share, kept under a cache by what they were made from."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

import adaptx as ax
from adaptx.adapters.adapter import Adapter
from adaptx.data.read import find_split, read_examples
from adaptx.encoder.encoder import Encoder

ENCODER = "bundled:multilingual-e5-small"
LABELS = tuple(f"label {i}" for i in range(7))
TRAINED = ("swh_Latn", "hau_Latn", "yor_Latn", "amh_Ethi", "eng_Latn")
TRAINING = {"epochs": 7, "batch_size": 16, "precision": "auto", "lr": 5e-4, "seed": 0}


def config(rank: int = 8) -> LoraConfig:
    """LoRA at every linear site."""
    return LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear")


def random_adapter(encoder: Encoder, number: int, rank: int = 8) -> Adapter:
    """An adapter whose updates have about the size that training gives them."""
    task = ax.tasks.Classification(LABELS)
    adapter = ax.Adapter.new(encoder, task, config(rank), name=f"random-{number}", seed=number)
    generator = torch.Generator().manual_seed(number)
    for part in adapter.sites.values():
        part.b.data = 0.02 * torch.randn(part.b.shape, generator=generator)
    assert adapter.head is not None
    adapter.head.weight.data *= 10
    return adapter.requires_grad_(False).eval()


def trained_adapter(encoder: Encoder, data: Path, cache: Path, language: str) -> Adapter:
    """A LoRA of r=8 trained on a language of SIB-200, from the cache where it stands there."""
    folder = data / "sib200" / language
    about = json.dumps([encoder.fingerprint, TRAINING], sort_keys=True).encode()

    def train() -> Adapter:
        rows = read_examples(find_split(folder, "train"))
        task = ax.tasks.Classification()
        settings: dict[str, Any] = dict(TRAINING)
        return ax.train(encoder, task, config(), name=language, train=rows, **settings)

    about += find_split(folder, "train").read_bytes()
    return cached_adapter(cache, language, about, encoder, train)


def cached_adapter(
    cache: Path, name: str, about: bytes, encoder: Encoder, train: Callable[[], Adapter]
) -> Adapter:
    """An adapter from the cache, trained unless it stands there; `about` is what it comes from."""
    saved = cache / f"{name}-{hashlib.sha256(about).hexdigest()[:12]}"
    if not saved.is_dir():
        print(f"training {name} …", file=sys.stderr)
        train().save(saved)
    return Adapter.load(saved, encoder)


def sources() -> str:
    """A digest of the code that writes bundles."""
    digest = hashlib.sha256()
    for path in sorted((Path(ax.__file__).parent / "onnx").glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def cached_bundle(
    cache: Path, name: str, encoder: Encoder, make: Callable[[], Sequence[Adapter]], **options: Any
) -> Path:
    """The folder of a bundle, exported unless this code has exported it already."""
    folder = cache / f"{name}-{encoder.fingerprint[7:15]}-{sources()}"
    if not folder.is_dir():
        print(f"exporting {name} …", file=sys.stderr)
        ax.export(
            encoder, make(), folder, say=lambda s: print(f"  {s}", file=sys.stderr), **options
        )
    return folder


def write_random_adapters(encoder: Encoder, folder: Path, count: int) -> list[Path]:
    """Folders of random adapters, written unless they are there."""
    found = []
    for number in range(count):
        adapter = random_adapter(encoder, number)
        path = folder / adapter.name
        if not path.is_dir():
            adapter.save(path)
        found.append(path)
    return found
