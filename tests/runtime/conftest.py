"""A small encoder, an adapter of each kind, and their bundles: int8 and fp32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig

import adaptx as ax
from adaptx.adapters.head import Head
from adaptx.runtime.runtime import Runtime
from tests.encoder.families import write_encoder

TOPICS, MOODS = ("afya", "michezo", "siasa"), ("njema", "mbaya")
TEXTS = (
    "Nimefurahi sana leo.",
    "Bei ya mchele imepanda tena sokoni, na wananchi wengi wanalalamika.",
    "OK",
    "The bridge stays closed until the engineers have checked every cable of it, they say.",
    "Inu mi dun",
    "Le match a été reporté à cause de la pluie.",
    "Хорошо, до завтра.",
    "",
    "Timu yetu imeshinda mabao mawili kwa moja katika dakika za mwisho.",
    "Rais amezungumza na waandishi wa habari kuhusu uchaguzi ujao.",
)


def acting(encoder, name, seed, rank=4, task=None, targets="all-linear", **options):
    """An adapter that acts, with logits of a trained head's size; rank 0 is a probe."""
    config = None
    if rank:
        config = LoraConfig(r=rank, init_lora_weights=False, target_modules=targets)
    adapter = ax.Adapter.new(encoder, task, config, name=name, seed=seed, **options)
    generator = torch.Generator().manual_seed(seed)
    for part in adapter.sites.values():
        part.b.data = 0.05 * torch.randn(part.b.shape, generator=generator)
    if adapter.head is not None:
        adapter.head.weight.data *= 20
        adapter.head.bias.data = torch.randn(adapter.head.bias.shape, generator=generator)
    return adapter.requires_grad_(False).eval()


def with_imported_head(adapter):
    """The adapter with a head as transformers' classifiers have it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapter.head = Head(adapter.head.in_features, adapter.task.outputs, "tanh", 1e-5)
        torch.nn.init.normal_(adapter.head.norm.weight, 1.0, 0.1)
    adapter.facts = replace(adapter.facts, head=adapter.head.options)
    return adapter.requires_grad_(False).eval()


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """A small XLM-R with random weights, and 16,000 pieces of the real tokenizer."""
    folder = write_encoder(tmp_path_factory.mktemp("encoder") / "xlm-roberta", "xlm-roberta")
    return ax.Encoder.from_pretrained(folder, prefix="query: ")


@pytest.fixture(scope="session")
def adapters(encoder):
    """By name: of several ranks, some sites, none; without a head; of either pooling."""
    topics, moods = ax.tasks.Classification(TOPICS), ax.tasks.Classification(MOODS)
    first, some = ax.tasks.Classification(MOODS, "cls"), ["query", "layer.1.output.dense"]
    made = [
        acting(encoder, "sw-topics", 1, 3, topics, language="sw", max_length=12),
        acting(encoder, "yo-moods", 2, 8, first, language="yo"),
        acting(encoder, "wide", 3, 20, topics, some, language="fr"),
        acting(encoder, "probe", 4, 0, moods, language="ru"),
        acting(encoder, "bare", 5, 8),
        with_imported_head(acting(encoder, "imported", 6, 4, first, language="yo")),
    ]
    return {adapter.name: adapter for adapter in made}


@pytest.fixture(scope="session")
def bundles(encoder, adapters, tmp_path_factory):
    """The bundles' folders by quantization; read only."""
    folder = tmp_path_factory.mktemp("bundles")
    for quantization in ("int8", "fp32"):
        bank = "fp16" if quantization == "int8" else None
        given = list(adapters.values())
        ax.export(encoder, given, folder / quantization, quantize=quantization, bank=bank)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="session")
def int8(bundles):
    return bundles["int8"]


@pytest.fixture(scope="session")
def fp32(bundles):
    return bundles["fp32"]


@pytest.fixture
def runtime(int8):
    """An open int8 bundle that a test may change."""
    with Runtime.open(int8, threads=2) as opened:
        yield opened


@pytest.fixture(scope="session")
def others(encoder, tmp_path_factory):
    """Forty more adapters' folders, of two ranks: a library."""
    folder = tmp_path_factory.mktemp("library")
    for i in range(40):
        task = ax.tasks.Classification(TOPICS) if i % 2 else None
        adapter = acting(encoder, f"more-{i}", 100 + i, 2 + 6 * (i % 2), task, ["query", "dense"])
        adapter.save(folder / adapter.name)
    return folder
