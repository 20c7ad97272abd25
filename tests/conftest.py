"""Fixtures: the real offline encoder, small encoders of each family, and the one reason to skip."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "recipes" / "data" / "swh"
BUNDLED = "bundled:multilingual-e5-small"


@pytest.fixture(scope="session", autouse=True)
def runs_dir(tmp_path_factory):
    """Where `adaptx train` keeps its runs meanwhile: not in the tree."""
    os.environ["ADAPTX_RUNS"] = str(tmp_path_factory.mktemp("runs"))
    return Path(os.environ["ADAPTX_RUNS"])


def pytest_collection_modifyitems(items):
    data = os.environ.get("ADAPTX_DATA")
    if data and Path(data).is_dir():
        return
    for item in items:
        if item.get_closest_marker("requires_data"):
            item.add_marker(pytest.mark.skip(reason="needs the benchmark data: set $ADAPTX_DATA"))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = len(reporter.stats.get("skipped", ())) if reporter else 0
    if skipped and os.environ.get("ADAPTX_FAIL_ON_SKIP") and exitstatus == 0:
        session.exitstatus = 1


@pytest.fixture(scope="session")
def encoder():
    """The real offline encoder, multilingual-e5-small."""
    from adaptx import Encoder

    return Encoder.from_pretrained(BUNDLED)


@pytest.fixture(scope="session")
def small_folders(tmp_path_factory):
    """A folder for each family: a small model with random weights, and the real tokenizer."""
    import torch
    from transformers import AutoModel, BertConfig, RobertaConfig, XLMRobertaConfig

    from adaptx.encoder.bundled import bundled_folder

    source = bundled_folder("multilingual-e5-small")
    shape = {
        "vocab_size": 250_037,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    configs = {
        "bert": BertConfig(**shape, max_position_embeddings=64, pad_token_id=1),
        "roberta": RobertaConfig(
            **shape, max_position_embeddings=66, pad_token_id=1, type_vocab_size=1
        ),
        "xlm-roberta": XLMRobertaConfig(
            **shape, max_position_embeddings=66, pad_token_id=1, type_vocab_size=1
        ),
    }
    folders = {}
    for family, config in configs.items():
        torch.manual_seed(7)
        folder = tmp_path_factory.mktemp("encoders") / family
        model = AutoModel.from_config(config, add_pooling_layer=False)
        for name, parameter in model.named_parameters():  # large enough that a wrong path shows
            torch.nn.init.normal_(parameter, std=0.3, mean=float("LayerNorm.weight" in name))
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(source / name, folder)
        folders[family] = folder
    return folders


@pytest.fixture(scope="session")
def small(small_folders):
    """A small BERT-shaped encoder with random weights: fast enough for property tests."""
    from adaptx import Encoder

    return Encoder.from_pretrained(small_folders["bert"])
