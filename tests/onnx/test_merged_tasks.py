"""The merged export of each task, opened with optimum's class for it, as its users do."""

import importlib

import numpy as np
import pytest
import torch
from peft import LoraConfig

import adaptx as ax
from adaptx.data.records import Pair, Passage, Tagged
from adaptx.data.windows import whole
from adaptx.onnx.merged import CLASSES
from adaptx.onnx.parity import head_outputs, torch_outputs

pytestmark = pytest.mark.optimum
TASKS = {
    "several": ax.tasks.MultiLabel(("a", "b", "c")),
    "pairs": ax.tasks.PairClassification(("yes", "no")),
    "names": ax.tasks.TokenClassification(("O", "B-LOC", "I-LOC")),
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


def test_pipelines_answer_with_labels_and_spans(encoder, tmp_path):
    from optimum.onnxruntime import ORTModelForQuestionAnswering, ORTModelForTokenClassification
    from transformers import AutoTokenizer, pipeline

    ax.export_merged(encoder, acting(encoder, "names"), tmp_path / "names")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "names")
    model = ORTModelForTokenClassification.from_pretrained(tmp_path / "names")
    found = pipeline("token-classification", model, tokenizer=tokenizer)(TEXT)
    assert {one["entity"] for one in found} <= set(TASKS["names"].labels)

    ax.export_merged(encoder, acting(encoder, "answers"), tmp_path / "answers")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "answers")
    model = ORTModelForQuestionAnswering.from_pretrained(tmp_path / "answers")
    answer = pipeline("question-answering", model, tokenizer=tokenizer)
    found = answer(question=PAIR[0], context=PAIR[1])
    assert found["answer"] in PAIR[1]


def test_a_similarity_is_on_the_scale_of_its_training_data(encoder, tmp_path):
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer, pipeline

    adapter, folder = acting(encoder, "nearness"), tmp_path / "onnx"
    before = adapter.head.weight.clone()
    pairs = [Pair(*PAIR, "1"), Pair(TEXT, PAIR[1], "4"), Pair(TEXT, TEXT, "5")]
    report = ax.export_merged(encoder, adapter, folder, dev=pairs)
    assert report["dev"]["onnx"] == pytest.approx(report["dev"]["torch"], abs=1e-5)
    assert (adapter.head.weight == before).all()
    model = ORTModelForSequenceClassification.from_pretrained(folder)
    score = pipeline("text-classification", model, tokenizer=AutoTokenizer.from_pretrained(folder))
    for pair in pairs:
        (wanted,) = encoder.predict([(pair.text, pair.other)], adapter)
        found = score({"text": pair.text, "text_pair": pair.other})
        assert found["score"] == pytest.approx(wanted.score, abs=1e-3)


def test_scores_on_dev_are_the_tasks_own(encoder, tmp_path):
    names = [Tagged(tuple(TEXT.split()), ("O", "O", "O", "B-LOC", "O", "O"))]
    report = ax.export_merged(encoder, acting(encoder, "names"), tmp_path / "names", dev=names)
    assert report["metric"] == "f1" and report["dev"]["torch"] == report["dev"]["onnx"]
    asked = [Passage("1", PAIR[0], PAIR[1], (("Ìbàdàn", PAIR[1].index("Ìbàdàn")),))]
    report = ax.export_merged(encoder, acting(encoder, "answers"), tmp_path / "answers", dev=asked)
    assert set(report["dev"]["onnx"]) == {"f1", "exact_match"}
