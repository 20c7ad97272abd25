"""The model card: what the Hub's own reader makes of it, and what a stranger finds."""

import json
import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from peft import LoraConfig

from adaptx import Adapter, tasks
from adaptx.adapters.card import model_card
from adaptx.adapters.folder import Facts, read_facts, record_evaluation
from adaptx.errors import FolderError

FACTS = Facts(
    name="sw-topics",
    method="lora",
    encoder="intfloat/multilingual-e5-small",
    fingerprint="sha256:" + "0" * 64,
    prefix="query: ",
    max_length=128,
    language="swh_Latn",
    task={"kind": "classification", "labels": ["afya", "michezo"], "pooling": "mean"},
    scales={f"encoder.layer.{i}.output.dense": 1.0 for i in range(12)},
    training={
        "settings": {"epochs": 3, "lr": 1e-3, "patience": None},
        "train_rows": 700,
        "dev_rows": 99,
        "precision": "bf16",
        "processes": 2,
        "seconds": 61.3,
        "best": {"epoch": 2, "accuracy": 0.75, "macro_f1": 0.7, "weighted_f1": 0.74},
    },
)


def scored(afya=20, michezo=80):
    label = {"precision": 0.5, "recall": 0.25, "f1": 1 / 3}
    return {
        "rows": afya + michezo,
        "accuracy": 0.8125,
        "macro_f1": 0.7,
        "weighted_f1": 0.8,
        "interval": [0.72, 0.88],
        "commonest": 0.8,
        "labels": {"afya": {**label, "rows": afya}, "michezo": {**label, "rows": michezo}},
    }


EVALUATION = {
    "sw": {**scored(), "file": "test.tsv", "sha256": "0" * 64},
    "en": {**scored(300, 700), "file": "en.tsv", "sha256": "1" * 64},
    "all": scored(320, 780),
}


def section(card, title):
    return re.search(rf"^## {title}\n\n(.*?)(?=^## |\Z)", card, re.M | re.S).group(1)


def test_the_hub_reads_the_scores_in_its_front_matter():
    card = ModelCard(model_card(replace(FACTS, evaluation=EVALUATION)))
    data = card.data
    assert data.library_name == "peft"
    assert data.base_model == "intfloat/multilingual-e5-small"
    assert data.language == "swh"
    assert data.pipeline_tag == "text-classification"
    assert {"adaptx", "lora"} <= set(data.tags)
    found = {(r.dataset_type, r.metric_name): r.metric_value for r in data.eval_results}
    assert found["sw", "accuracy"] == 0.8125
    assert found["en", "macro F1"] == 0.7
    assert {name for name, _ in found} == {"sw", "en"}


def test_a_card_without_an_evaluation_says_so():
    card = model_card(FACTS)
    assert "hasn't been evaluated on test data" in section(card, "Scores")
    assert "accuracy 0.750" in section(card, "Scores")
    assert "isn't known" in section(card, "Limits")
    assert "model-index" not in card


def test_a_card_tells_a_stranger_what_it_is_and_how_good():
    card = model_card(replace(FACTS, evaluation=EVALUATION))
    assert "one of: afya, michezo" in card
    assert "updates at 12 of its linear layers" in card
    assert "128 tokens at most" in card
    assert "trained on texts in `swh_Latn`" in card
    scores = section(card, "Scores")
    assert "| sw (test.tsv) | 100 | 0.812 | 0.720 to 0.880 | 0.700 | 0.800 | 0.800 |" in scores
    assert "| all of them | 1100 |" in scores
    assert "| michezo | 780 | 0.500 | 0.250 | 0.333 |" in scores
    training = section(card, "How it was trained")
    assert "700 training rows, 99 development rows" in training
    assert "epochs 3, lr 0.001\n" in training
    assert "bf16" in training
    assert FACTS.fingerprint in section(card, "Which encoder")
    limits = section(card, "Limits")
    assert "other data than sw, en" in limits
    assert "Small test sets: sw (100 rows)." in limits
    assert "uneven" not in limits


def test_a_card_warns_of_uneven_and_of_absent_labels():
    uneven = {"sw": {**scored(20, 80), "file": "t.tsv"}}
    said = section(model_card(replace(FACTS, evaluation=uneven)), "Limits")
    assert "michezo has 80 test rows, afya 20" in said
    absent = {"sw": {**scored(0, 80), "file": "t.tsv"}}
    said = section(model_card(replace(FACTS, evaluation=absent)), "Limits")
    assert "Never seen in the test data: afya." in said


@pytest.mark.parametrize(
    ("task", "reads", "limit"),
    [
        (tasks.PairClassification(("yes", "no")), "two texts", "48 tokens at most, the rest"),
        (tasks.Similarity(), "two texts", "48 tokens at most, the rest is cut off"),
        (tasks.QuestionAnswering(), "a question and a passage", "48 tokens at a time, what"),
        (tasks.TokenClassification(("O", "B-X", "I-X")), "one text", "several windows"),
        (tasks.Retrieval(), "one text", "48 tokens at most, the rest is cut off"),
    ],
)
def test_a_card_says_what_its_task_reads_and_how_to_ask_it(small, tmp_path, task, reads, limit):
    adapter = Adapter.new(
        small, task, LoraConfig(r=2, target_modules="all-linear"), name="a", max_length=48
    )
    card = (adapter.save(tmp_path / "a") / "README.md").read_text()
    (bullet,) = re.findall(r"^- \*\*Reads\*\* (.*)$", card, re.M)
    assert bullet.startswith(f"{reads}; ") and limit in bullet
    assert ('adaptx predict "…" --passage "…"' in card) == task.two_texts
    (code,) = re.findall(r"```python\n(.*?)```", section(card, "How to use it"), re.S)
    *opening, asking = code.replace("path/to/this/folder", str(tmp_path / "a")).splitlines()
    scope: dict = {}
    exec("\n".join(opening), scope)
    assert len(eval(asking, scope)) == 1


def test_names_stay_inside_their_table_and_front_matter():
    labels = ["a|b", "c\nd", "<b>e"]
    rows = {label: {"precision": 0, "recall": 0, "f1": 0, "rows": 9} for label in labels}
    evaluation = {"sw": {**scored(), "labels": rows, "file": "a: b|c.tsv"}}
    task = {**FACTS.task, "labels": labels}
    facts = replace(FACTS, name="yes: {no} #1", task=task, evaluation=evaluation, language="no")
    card = model_card(facts)
    assert r"| a\|b | 9 |" in card
    assert "| c d | 9 |" in card
    assert "<b>" not in card
    data = ModelCard(card).data
    assert data.model_name == "yes: {no} #1"
    assert data.language == "no"
    assert data.eval_results[0].dataset_name == "sw: a: b|c.tsv"


@pytest.mark.parametrize(
    ("method", "library", "said"),
    [
        ("probe", "adaptx", "nothing is added inside it"),
        ("full", "adaptx", "All of the encoder's weights were trained"),
        ("ia3", "peft", "`ia3`"),
    ],
)
def test_a_card_knows_the_method(method, library, said):
    card = model_card(replace(FACTS, method=method))
    assert said in card
    assert ModelCard(card).data.library_name == library


def test_an_adapter_without_a_head_or_a_hub_name_has_a_card_too():
    card = model_card(replace(FACTS, task=None, language=None, encoder="bundled:x", training={}))
    assert "It has no head" in card
    assert "[train,bundled]" in card
    assert "## Scores" not in card
    data = ModelCard(card).data
    assert data.base_model is None
    assert data.language is None


def test_a_folders_name_is_no_base_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    facts = replace(FACTS, encoder="enc/xlm-roberta")
    assert ModelCard(model_card(facts)).data.base_model == "enc/xlm-roberta"
    (tmp_path / "enc" / "xlm-roberta").mkdir(parents=True)
    for name in ("enc/xlm-roberta", "./elsewhere"):
        assert ModelCard(model_card(replace(FACTS, encoder=name))).data.base_model is None


def test_a_probe_that_was_solved_has_no_best_epoch():
    best = {"epoch": 1, "strength": 0.01, "accuracy": 0.75}
    facts = replace(FACTS, method="probe", scales={}, training=FACTS.training | {"best": best})
    assert "Kept: epoch 2, the best on the development rows" in model_card(FACTS)
    card = model_card(facts)
    assert "regularization that was best on the development rows (accuracy 0.750)" in card
    assert "epoch 1" not in card


@pytest.mark.parametrize("wrong", [{"sw": 1}, {"sw": {}}, {"sw": {**scored(), "accuracy": "x"}}])
def test_scores_that_adaptx_didnt_write_are_refused(wrong):
    with pytest.raises(FolderError, match="isn't as adaptx writes it"):
        model_card(replace(FACTS, evaluation=wrong))


@pytest.fixture
def saved(small, tmp_path):
    task = tasks.Classification(("afya", "michezo"))
    return Adapter.new(small, task, None, name="p").save(tmp_path / "p")


def test_scores_are_recorded_in_the_folder_and_stay_through_load_and_save(small, saved, tmp_path):
    (saved / "notes.txt").write_text("mine")
    (saved / ".git").mkdir()  # a clone from the Hub
    (saved / ".git" / "config").write_text("[core]")
    before = (saved / "head.safetensors").read_bytes()
    record_evaluation(saved, EVALUATION)
    facts, manifest = read_facts(saved)
    assert facts.evaluation == EVALUATION
    assert manifest["files"].keys() == {"README.md", "head.safetensors"}
    assert (saved / ".git" / "config").read_text() == "[core]"
    assert (saved / "head.safetensors").read_bytes() == before
    assert (saved / "notes.txt").read_text() == "mine"
    assert "sw (test.tsv)" in (saved / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
    again = Adapter.load(saved, small).save(tmp_path / "again")
    assert (again / "README.md").read_text() == (saved / "README.md").read_text()


def test_damaged_weights_get_no_fresh_checksum(saved):
    data = bytearray((saved / "head.safetensors").read_bytes())
    data[-1] ^= 1
    (saved / "head.safetensors").write_bytes(data)
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(FolderError, match="changed or damaged"):
        record_evaluation(saved, EVALUATION)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == files


def test_an_evaluation_of_the_wrong_kind_is_refused_on_reading(saved):
    path = saved / "adaptx.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "evaluation": [1]}))
    with pytest.raises(FolderError, match="evaluation can't be"):
        read_facts(saved)
