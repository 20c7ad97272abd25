"""Adapters of the small encoder, and a bundle of them, for the commands that take either."""

import pytest
from peft import LoraConfig

import adaptx as ax

TASK = ax.tasks.Classification(("afya", "michezo", "siasa"))


@pytest.fixture(scope="session")
def three(small, tmp_path_factory):
    """Folders by name: sw and yo, LoRAs of two ranks at other sites, and a probe."""
    folder = tmp_path_factory.mktemp("three")
    made = {}
    for seed, (name, config) in enumerate(
        {
            "sw": LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear"),
            "yo": LoraConfig(r=8, init_lora_weights=False, target_modules=["query", "value"]),
            "probe": None,
        }.items()
    ):
        language = name if config else None
        adapter = ax.Adapter.new(small, TASK, config, name=name, language=language, seed=seed)
        assert adapter.head is not None
        adapter.head.weight.data *= 20
        made[name] = adapter.save(folder / name)
    return made


@pytest.fixture(scope="session")
def bundle(small, three, tmp_path_factory):
    """The int8 bundle of the three."""
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    ax.export(small, [ax.Adapter.load(path, small) for path in three.values()], folder)
    return folder


@pytest.fixture(scope="session")
def search(small, tmp_path_factory):
    """The folder of a retrieval adapter, and its fp32 bundle."""
    folder = tmp_path_factory.mktemp("search")
    config = LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear")
    adapter = ax.Adapter.new(small, ax.tasks.Retrieval(), config, name="sw-search", seed=5)
    ax.export(small, [adapter], folder / "bundle", quantize="fp32")
    return adapter.save(folder / "sw-search"), folder / "bundle"
