"""The merged export of each task, opened with optimum's class for it, as its users do."""

import importlib
import re

import numpy as np
import pytest
import torch
from peft import LoraConfig

import adaptx as ax
from adaptx.data.records import Pair, Passage, Tagged
from adaptx.data.windows import whole
from adaptx.onnx.merged_readme import CLASSES
from adaptx.onnx.parity import head_outputs, torch_outputs

pytestmark = pytest.mark.optimum
TASKS = {
    "topics": ax.tasks.Classification(("a", "b")),
    "several": ax.tasks.MultiLabel(("a", "b", "c")),
    "pairs": ax.tasks.PairClassification(("yes", "no")),
    "names": ax.tasks.TokenClassification(("O", "B-LOC", "I-LOC")),
    "speech": ax.tasks.TokenClassification(("NOUN", "PUNCT", "VERB"), scheme="plain"),
    "answers": ax.tasks.QuestionAnswering(),
    "nearness": ax.tasks.Similarity(mean=2.0, scale=1.5),
    "vectors": ax.tasks.Retrieval(),
    "first": ax.tasks.Retrieval(pooling="cls"),
}
TEXT, PAIR = "Adé lọ sí Ìbàdàn , leo", ("Wapi?", "Adé lọ sí Ìbàdàn leo")


@pytest.fixture(scope="module")
def encoder(small_folders):
    return ax.Encoder.from_pretrained(small_folders["xlm-roberta"], prefix="query: ")


def acting(encoder, name):
    config = LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear")
    adapter = ax.Adapter.new(encoder, TASKS[name], config, name=name, seed=1)
    if adapter.head is not None:
        adapter.head.weight.data *= 20
    return adapter.requires_grad_(False).eval()


@pytest.mark.parametrize("name", TASKS)
def test_it_opens_with_its_class_and_gives_torchs_outputs(encoder, tmp_path, name):
    from transformers import AutoTokenizer

    adapter, folder = acting(encoder, name), tmp_path / "onnx"
    report = ax.export_merged(encoder, adapter, folder)
    assert report["max_relative_difference"] < 1e-4
    opened = getattr(importlib.import_module("optimum.onnxruntime"), CLASSES[adapter.task.hub])
    model, tokenizer = opened.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    one = PAIR if adapter.task.two_texts else TEXT
    batch = tokenizer(*([one] if isinstance(one, str) else one), return_tensors="pt")
    (window,) = whole(encoder.text, adapter.prefix, [one])
    assert batch["input_ids"].tolist() == [window.ids]
    with torch.no_grad():
        found = model(**batch)
    wanted = torch_outputs(encoder, adapter, window.ids)
    if name == "answers":
        got = np.stack([found.start_logits[0].numpy(), found.end_logits[0].numpy()], -1)
    elif adapter.task.hub == "feature-extraction":
        states = found.last_hidden_state[0].numpy()
        got = states.mean(0) if name == "vectors" else states[0]
    else:
        got = head_outputs(adapter.task, found.logits[0].numpy())
    np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max())
    if adapter.task.problem:
        assert model.config.problem_type == adapter.task.problem
    if name in ("names", "pairs", "several"):
        assert model.config.id2label == dict(enumerate(adapter.task.labels))
    assert CLASSES[adapter.task.hub] in (folder / "README.md").read_text()


def nearly(found, wanted):
    return found == pytest.approx(wanted, abs=1e-3)


FOUND = {  # whether what the README's code finds is what the adapter answers
    "topics": lambda found, wanted: (
        found[0]["label"] == wanted.label and nearly(found[0]["score"], wanted.score)
    ),
    "several": lambda found, wanted: (
        {one["label"]: one["score"] for one in found}
        == pytest.approx({label: wanted.scores[label] for label in wanted.labels}, abs=1e-3)
    ),
    "pairs": lambda found, wanted: (
        found["label"] == wanted.label and nearly(found["score"], wanted.score)
    ),
    "names": lambda found, wanted: found == list(zip(wanted.words, wanted.tags, strict=True)),
    "speech": lambda found, wanted: found == list(zip(wanted.words, wanted.tags, strict=True)),
    "answers": lambda found, wanted: found["answer"] in PAIR[1],
    "nearness": lambda found, wanted: nearly(found["score"], wanted.score),
    "vectors": lambda found, wanted: nearly(found, wanted),
    "first": lambda found, wanted: nearly(found, wanted),
}


@pytest.mark.parametrize("name", FOUND)
def test_the_readmes_code_finds_what_the_adapter_answers(encoder, tmp_path, name):
    adapter, folder = acting(encoder, name), tmp_path / "onnx"
    if adapter.task.hub == "token-classification":  # tags that differ from word to word
        (window,) = whole(encoder.text, adapter.prefix, [TEXT])
        outputs = torch_outputs(encoder, adapter, window.ids)
        adapter.head.bias.data -= torch.from_numpy(outputs).mean(0)
        adapter.head.bias.data[2] -= 1e3 * (name == "names")  # none that BIO forbids
        assert len(set(encoder.predict([TEXT], adapter)[0].tags)) > 1
    ax.export_merged(encoder, adapter, folder)
    one = PAIR if adapter.task.two_texts else TEXT * 300 if name == "topics" else TEXT
    texts = [one] if isinstance(one, str) else one
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    assert code.count('"…"') == len(texts)
    code = code.replace("path/to/this/folder", str(folder))
    for text in texts:
        code = code.replace('"…"', repr(text), 1)
    scope: dict = {}
    exec(code, scope)
    (wanted,) = encoder.predict([one], adapter)
    assert FOUND[name](scope["found"], wanted)


def test_scores_on_dev_are_the_tasks_own(encoder, tmp_path):
    names = [Tagged(tuple(TEXT.split()), ("O", "O", "O", "B-LOC", "O", "O"))]
    report = ax.export_merged(encoder, acting(encoder, "names"), tmp_path / "names", dev=names)
    assert report["metric"] == "f1" and report["dev"]["torch"] == report["dev"]["onnx"]
    asked = [Passage("1", PAIR[0], PAIR[1], (("Ìbàdàn", PAIR[1].index("Ìbàdàn")),))]
    report = ax.export_merged(encoder, acting(encoder, "answers"), tmp_path / "answers", dev=asked)
    assert set(report["dev"]["onnx"]) == {"f1", "exact_match"}
    near, pairs = acting(encoder, "nearness"), [Pair(*PAIR, "1"), Pair(TEXT, PAIR[1], "4")]
    weight = near.head.weight.clone()
    report = ax.export_merged(encoder, near, tmp_path / "nearness", dev=pairs)
    assert report["dev"]["onnx"] == pytest.approx(report["dev"]["torch"], abs=1e-5)
    assert (near.head.weight == weight).all()
