import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from peft import LoraConfig

import adaptx as ax
from adaptx.data.read import Example, read_examples
from adaptx.encoder.families import FAMILIES
from adaptx.errors import DataError, FingerprintError, OptionError, OutputExists, ParityError
from adaptx.onnx import merged as module
from adaptx.onnx.parity import MergedSession, compare, torch_logits
from adaptx.onnx.probe_texts import PROBE_TEXTS
from adaptx.runtime.sessions import EXACT
from adaptx.runtime.verify import BOUNDS, Bounds
from tests.conftest import SAMPLE

pytestmark = pytest.mark.optimum
LABELS = ("elimu", "michezo", "siasa")


def acting(encoder, pooling="mean", **options):
    config = LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear")
    task = ax.tasks.Classification(LABELS, pooling)
    adapter = ax.Adapter.new(encoder, task, config, name="sw", **options)
    adapter.head.weight.data *= 20  # logits of a trained head's size
    return adapter


def ort_model(folder):
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer

    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry(EXACT, "1")
    model = ORTModelForSequenceClassification.from_pretrained(folder, session_options=settings)
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_familys_merged_model_opens_with_optimum_and_answers_as_torch(
    small_folders, tmp_path, family
):
    encoder = ax.Encoder.from_pretrained(small_folders[family], prefix="query: ")
    adapter = acting(encoder, pooling="cls" if family == "roberta" else "mean")
    folder = tmp_path / "onnx"
    report = ax.export_merged(encoder, adapter, folder)
    assert report["max_relative_difference"] < 1e-4
    assert report["agreement"] == 1.0

    model, tokenizer = ort_model(folder)
    assert model.config.id2label == dict(enumerate(LABELS))
    texts = list(PROBE_TEXTS[:6])
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    logits = model(**batch).logits.numpy()
    wanted = torch_logits(encoder, adapter, texts)
    np.testing.assert_allclose(logits, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())

    module.quantize_int8(folder, module.kept_fp32(folder / module.MODEL))
    compare(folder, encoder, adapter, PROBE_TEXTS, [], "int8")  # raises out of bounds
    graph = onnx.load(folder / module.MODEL).graph
    integer = [node for node in graph.node if node.op_type == "MatMulInteger"]
    # Every Linear but the FFN's second; no product of attention, and no table of positions.
    assert len(integer) == len(encoder.sites) - encoder.config.num_hidden_layers


def test_the_pipeline_gives_labels_and_scores(small, tmp_path):
    from transformers import pipeline

    adapter = acting(small)
    ax.export_merged(small, adapter, tmp_path / "onnx")
    model, tokenizer = ort_model(tmp_path / "onnx")
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
    wanted = small.predict(list(PROBE_TEXTS[:5]), adapter)
    for text, answer in zip(PROBE_TEXTS, wanted, strict=False):
        (found,) = classify(text)
        assert found["label"] == answer.label
        assert found["score"] == pytest.approx(answer.score, abs=1e-4)


@pytest.mark.parametrize("max_length", [12, 1000])
def test_the_prefix_and_the_truncation_are_in_the_tokenizer(small_folders, tmp_path, max_length):
    encoder = ax.Encoder.from_pretrained(small_folders["bert"], prefix="query: ")
    adapter = acting(encoder, max_length=max_length)
    ax.export_merged(encoder, adapter, tmp_path / "onnx")
    session = MergedSession(tmp_path / "onnx")
    for text in PROBE_TEXTS:
        wanted = encoder.text.ids(["query: " + text], max_length)[0]
        assert session.tokenizer.encode(text).ids == wanted


def test_the_merged_encoder_leaves_the_shared_one_alone(small, tmp_path):
    before = small.embed(PROBE_TEXTS[:2])
    ax.export_merged(small, acting(small), tmp_path / "onnx")
    assert np.array_equal(small.embed(PROBE_TEXTS[:2]), before)


def test_a_probe_exports_too(small, tmp_path):
    adapter = ax.Adapter.new(small, ax.tasks.Classification(LABELS), None, name="probe")
    report = ax.export_merged(small, adapter, tmp_path / "onnx")
    assert report["agreement"] == 1.0


@pytest.mark.slow
def test_int8_is_a_quarter_of_the_size_and_close(encoder, tmp_path):
    """On the real encoder: random weights have no outliers, and would prove nothing."""
    adapter = acting(encoder)
    texts = [row.text for row in read_examples(SAMPLE / "dev.jsonl")][:10]
    rows = [Example(text, LABELS[i % 3]) for i, text in enumerate(texts)]
    folder = tmp_path / "int8"
    report = ax.export_merged(encoder, adapter, folder, quantize="int8", dev=rows)
    assert report["max_relative_difference"] < BOUNDS["int8"].difference
    assert report["dev_rows"] == 10
    assert {path.name for path in folder.iterdir()} == {
        "model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json", "README.md",
        "adaptx.json",
    }  # fmt: skip
    assert (folder / "model.onnx").stat().st_size < 0.31 * 4 * encoder.parameters
    manifest = json.loads((folder / "adaptx.json").read_text())
    assert manifest["quantization"] == "int8"
    assert manifest["parity"] == json.loads(json.dumps(report))
    graph = onnx.load(folder / "model.onnx").graph
    integer = [node for node in graph.node if node.op_type == "MatMulInteger"]
    assert len(integer) == 60  # five of each layer's six: the FFN's second stays in fp32
    model, tokenizer = ort_model(folder)
    logits = model(**tokenizer(PROBE_TEXTS[0], return_tensors="pt")).logits.numpy()
    wanted = MergedSession(folder).logits(PROBE_TEXTS[:1])
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-5)


def test_the_gate_stops_a_model_that_answers_otherwise(small, tmp_path):
    """The export of one adapter, compared with another: out of every bound."""
    ax.export_merged(small, acting(small), tmp_path / "onnx")
    other = acting(small, seed=9)
    with pytest.raises(ParityError, match="relative difference") as caught:
        compare(tmp_path / "onnx", small, other, PROBE_TEXTS, [], "fp32")
    assert caught.value.report["max_relative_difference"] > 1e-2


def test_an_export_out_of_bounds_writes_nothing(small, tmp_path, monkeypatch):
    none = Bounds(difference=0.0, tie=0.0, agreement=1.0, vectors=1.0)
    monkeypatch.setitem(BOUNDS, "fp32", none)
    with pytest.raises(ParityError, match="Nothing was written"):
        ax.export_merged(small, acting(small), tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_gate_counts_the_drop_on_dev(small, tmp_path):
    adapter = acting(small)
    ax.export_merged(small, adapter, tmp_path / "onnx")
    texts = list(PROBE_TEXTS)
    said = [answer.label for answer in small.predict(texts, adapter)]
    rows = [Example(t, label) for t, label in zip(texts, said, strict=True)]
    report = compare(tmp_path / "onnx", small, adapter, texts, rows, "fp32")
    assert report["dev"]["torch"]["accuracy"] == report["dev"]["onnx"]["accuracy"] == 1.0
    other = acting(small, seed=9)
    wide = Bounds(difference=1e9, tie=0.0, agreement=0.0, vectors=0.0)
    ax.export_merged(small, other, tmp_path / "other")
    with pytest.raises(ParityError, match="accuracy on dev falls"):
        compare(tmp_path / "other", small, adapter, texts, rows, "fp32", wide)


def test_bad_input_is_refused_before_any_work(small, small_folders, tmp_path):
    adapter = acting(small)
    with pytest.raises(OptionError, match=r"'int4'.*int8"):
        ax.export_merged(small, adapter, tmp_path / "a", quantize="int4")
    bare = ax.Adapter.new(small, None, None, name="bare")
    with pytest.raises(OptionError, match="no task"):
        ax.export_merged(small, bare, tmp_path / "a")
    other = ax.Encoder.from_pretrained(small_folders["roberta"])
    with pytest.raises(FingerprintError):
        ax.export_merged(other, adapter, tmp_path / "a")
    with pytest.raises(DataError, match="unknown label"):
        ax.export_merged(small, adapter, tmp_path / "a", dev=SAMPLE / "dev.jsonl")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputExists, match="wasn't written by adaptx"):
        ax.export_merged(small, adapter, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_gate_counts_labels_that_are_told_apart_and_not_ties(small, tmp_path):
    """Of two labels with one weight, either is right; of two with others, one is."""
    adapter = acting(small)
    adapter.head.weight.data[1] = adapter.head.weight.data[0]
    adapter.head.bias.data[:2] = 50.0  # above the third label's, always
    ax.export_merged(small, adapter, tmp_path / "onnx")
    switched = acting(small)
    switched.load_state_dict(adapter.state_dict())
    switched.head.bias.data[1] += 1e-3  # the second label wins every tie now
    bounds = Bounds(difference=1e-3, tie=1e-3, agreement=1.0, vectors=0.0)
    report = compare(tmp_path / "onnx", small, switched, PROBE_TEXTS, [], "fp32", bounds)
    assert report["agreement"] < report["agreement_but_for_ties"] == 1.0
    switched.head.bias.data[1] += 100
    wide = Bounds(difference=1e9, tie=1e-3, agreement=1.0, vectors=0.0)
    with pytest.raises(ParityError, match="agreement but for ties"):
        compare(tmp_path / "onnx", small, switched, PROBE_TEXTS, [], "fp32", wide)


def test_torch_logits_are_the_routed_encoders(small):
    adapter = acting(small)
    logits = torch_logits(small, adapter, PROBE_TEXTS[:4])
    answers = adapter.task.decode(logits)
    for found, wanted in zip(answers, small.predict(PROBE_TEXTS[:4], adapter), strict=True):
        assert found.label == wanted.label
        assert found.score == pytest.approx(wanted.score, abs=1e-5)
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("method", ["dora", "full"])
def test_what_brings_its_own_model_exports_merged(small, tmp_path, method):
    rows = [Example(text, LABELS[i % 3]) for i, text in enumerate(PROBE_TEXTS[:12])]
    dora = LoraConfig(r=4, use_dora=True, target_modules="all-linear")
    adapter = ax.train(
        small,
        ax.tasks.Classification(LABELS),
        dora if method == "dora" else ax.Full(),
        name="sw",
        train=rows,
        epochs=2,
        lr=1e-2,
        batch_size=4,
    )
    report = ax.export_merged(small, adapter, tmp_path / "onnx")
    assert report["max_relative_difference"] < 1e-4
    found = MergedSession(tmp_path / "onnx").logits(["Habari za leo"])
    wanted = torch_logits(small, adapter, ["Habari za leo"])
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
