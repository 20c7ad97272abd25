"""Fixtures: the real offline encoder, small encoders of each family, and the one reason to skip."""

from __future__ import annotations

import os
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
    from tests.encoder.families import CONFIGS, write_encoder

    folder = tmp_path_factory.mktemp("encoders")
    return {family: write_encoder(folder / family, family) for family in CONFIGS}


@pytest.fixture(scope="session")
def small(small_folders):
    """A small BERT-shaped encoder with random weights: fast enough for property tests."""
    from adaptx import Encoder

    return Encoder.from_pretrained(small_folders["bert"])
