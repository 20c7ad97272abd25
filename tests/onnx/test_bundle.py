"""The export of a bundle: what it refuses before any work, and what its gate stops."""

import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from peft import LoraConfig

import adaptx as ax
from adaptx.data.records import Example
from adaptx.errors import (
    DataError,
    FingerprintError,
    FolderError,
    OptionError,
    OutputExists,
    ParityError,
    SiteError,
)
from adaptx.onnx.bundle import checked_dev
from adaptx.onnx.gate import check_drop, probe_ids
from adaptx.onnx.probe_texts import PROBE_TEXTS
from adaptx.onnx.vocabulary import cut
from adaptx.runtime import Runtime
from adaptx.runtime.layout import read_bundle
from adaptx.runtime.verify import BOUNDS, Bounds
from tests.encoder.families import write_encoder
from tests.runtime.conftest import TOPICS, acting

TASK = ax.tasks.Classification(TOPICS)
SITE = "encoder.layer.1.attention.self.value"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = write_encoder(tmp_path_factory.mktemp("encoder") / "xlm-roberta", "xlm-roberta")
    return ax.Encoder.from_pretrained(folder)


@pytest.fixture(scope="module")
def adapters(encoder):
    return [
        acting(encoder, "one", 1, 3, TASK, ["query"]),
        acting(encoder, "two", 2, 8, TASK, ["query", "value"]),
    ]


@pytest.fixture(scope="module")
def dev(encoder, adapters):
    """Rows by adapter whose labels are torch's own answers."""
    texts = list(PROBE_TEXTS)
    return {
        adapter.name: [
            Example(text, answer.label)
            for text, answer in zip(texts, encoder.predict(texts, adapter), strict=True)
        ]
        for adapter in adapters
    }


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_bundle_has_the_files_that_are_described(encoder, adapters, tmp_path):
    steps = []
    report = ax.export(encoder, adapters, tmp_path / "bundle", say=steps.append)
    assert left(tmp_path / "bundle") == [
        "adapters", "bundle.json", "check.onnx", "lone.onnx", "model.onnx", "model.onnx.data",
        "probe.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert left(tmp_path / "bundle" / "adapters") == ["one", "two"]
    facts, _ = read_bundle(tmp_path / "bundle")
    assert (facts.quantization, facts.bank_dtype, facts.adapters) == (
        "int8",
        "float32",
        ("one", "two"),
    )
    assert facts.fingerprint == encoder.fingerprint and facts.max_length == 64
    assert facts.parity == json.loads(json.dumps(report)) and facts.vocabulary == {}
    assert sorted(facts.sites) == [
        f"encoder.layer.{i}.attention.self.{name}" for i in (0, 1) for name in ("query", "value")
    ]
    assert steps[0] == "building the graph" and len(steps) == 5
    again = ax.Adapter.load(tmp_path / "bundle" / "adapters" / "two", encoder)
    assert torch.equal(again.sites[SITE].a, adapters[1].sites[SITE].a)


def test_fp32_has_no_check_and_banks_may_be_of_fp16(encoder, adapters, tmp_path):
    ax.export(encoder, adapters, tmp_path / "fp32", quantize="fp32")
    facts, manifest = read_bundle(tmp_path / "fp32")
    assert (facts.quantization, facts.bank_dtype) == ("fp32", "float32")
    assert "check.onnx" not in manifest["files"]
    assert list(facts.parity) == ["texts", "merged", "fp32"]
    ax.export(encoder, adapters, tmp_path / "int8", bank="fp16")
    facts, _ = read_bundle(tmp_path / "int8")
    assert (facts.quantization, facts.bank_dtype) == ("int8", "float16")
    with Runtime.open(tmp_path / "int8", threads=1) as runtime:
        assert {a.dtype.name for a in runtime.pool.bank.chunks[0].arrays.values()} == {"float16"}


@pytest.mark.parametrize("names", [[], ["probe"]])
def test_a_bundle_without_sites_is_the_plain_encoder(encoder, tmp_path, names):
    probes = [acting(encoder, name, 3, 0, TASK) for name in names]
    ax.export(encoder, probes, tmp_path / "bundle", quantize="fp32")
    texts = ["Habari za leo", "OK"]
    with Runtime.open(tmp_path / "bundle", threads=2) as runtime:
        assert runtime.facts.banks == ()
        np.testing.assert_allclose(runtime.embed(texts), encoder.embed(texts), atol=1e-4)
        for probe in probes:
            labels = [answer.prediction.label for answer in runtime.predict(texts, probe.name)]
            assert labels == [answer.label for answer in encoder.predict(texts, probe)]


def test_with_sites_all_any_adapter_may_join(encoder, adapters, tmp_path):
    wide = acting(encoder, "wide", 4, 4, TASK)
    wide.save(tmp_path / "wide")
    ax.export(encoder, adapters[:1], tmp_path / "some", quantize="fp32")
    ax.export(encoder, adapters[:1], tmp_path / "all", quantize="fp32", sites="all")
    lacking = pytest.raises(FolderError, match=r"layer.0.attention.self.key.*--sites all")
    with Runtime.open(tmp_path / "some", threads=1) as runtime, lacking:
        runtime.add(tmp_path / "wide")
    with Runtime.open(tmp_path / "all", threads=1) as runtime:
        assert sorted(runtime.facts.sites) == sorted(encoder.sites)
        runtime.add(tmp_path / "wide")
        texts = list(PROBE_TEXTS[:6])
        for found, wanted in zip(
            runtime.predict(texts, "wide"), encoder.predict(texts, wide), strict=True
        ):
            assert found.prediction.scores == pytest.approx(wanted.scores, abs=1e-4)
    facts, _ = read_bundle(tmp_path / "some")
    named = [*facts.sites, SITE]
    ax.export(encoder, adapters[:1], tmp_path / "named", quantize="fp32", sites=named)
    assert set(read_bundle(tmp_path / "named")[0].sites) == set(named)


def refused(encoder, adapters, tmp_path, error, said, **options):
    steps = []
    with pytest.raises(error, match=said):
        ax.export(encoder, adapters, tmp_path / "bundle", say=steps.append, **options)
    assert steps == [] and left(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"quantize": "int4"}, OptionError, "'int4' is none of int8, fp32"),
        ({"bank": "fp8"}, OptionError, "'fp8' is none of fp32, fp16"),
        ({"bank": "fp16", "quantize": "fp32"}, OptionError, "goes with quantize='int8'"),
        ({"sites": ["encoder.layer.9.x"]}, SiteError, "no site encoder.layer.9.x; there is"),
        ({"sites": "every"}, SiteError, "no site every; there is encoder.layer.0.*'all'"),
        ({"sites": [SITE]}, SiteError, "sites leaves out encoder.layer.0.attention.self.query"),
        ({"dev": {"three": []}}, OptionError, "no adapter 'three'; there is one, two"),
        ({"bank": ["fp16"]}, OptionError, "'fp16'.* is none of fp32, fp16"),
        ({"dev": {"one": []}}, OptionError, "no rows for adapter 'one'"),
        ({"dev": {"one": "nowhere.tsv"}}, DataError, "nowhere.tsv: there is no such file"),
        ({"dev": "dev.tsv"}, OptionError, "dev must say whose rows"),
        ({"max_drop": "1"}, OptionError, "max_drop='1' must be a number"),
        ({"dev": {"one": [Example("x", "uchumi")]}}, DataError, "unknown label 'uchumi'; allowed"),
    ],
)
def test_options_that_cant_be_are_refused_before_any_work(
    encoder, adapters, tmp_path, options, error, said
):
    refused(encoder, adapters, tmp_path, error, said, **options)


def test_adapters_that_cant_be_exported_are_refused_before_any_work(encoder, adapters, tmp_path):
    one, two = adapters
    plain = acting(encoder, "(no adapter)", 9)
    refused(encoder, [plain], tmp_path, OptionError, "can't be called '.no adapter.'")
    twice = acting(encoder, "one", 9)
    refused(encoder, [one, two, twice], tmp_path, OptionError, "called one: rename")
    dora = ax.Adapter.new(
        encoder, TASK, LoraConfig(r=2, use_dora=True, target_modules=["query"]), name="d"
    )
    refused(encoder, [one, dora], tmp_path, OptionError, "'d' is of the method 'dora'.*--merged")
    bare = acting(encoder, "bare", 9)
    rows = {"bare": [Example("x", "afya")]}
    refused(encoder, [bare], tmp_path, OptionError, "'bare' has no task", dev=rows)


@pytest.mark.parametrize("given", ["adapters/one", None, "alone"])
def test_what_is_no_list_of_adapters_is_refused(encoder, adapters, tmp_path, given):
    given = adapters[0] if given == "alone" else given
    kind = type(given).__name__
    refused(encoder, given, tmp_path, OptionError, f"must be a list of them, not a {kind}")
    if given is not adapters[0]:
        said = rf"is a {kind}, not an adapter: open its folder first, with ax\.Adapter\.load"
        refused(encoder, [adapters[0], given], tmp_path, OptionError, said)


def test_dev_may_be_a_file(encoder, adapters, dev, tmp_path):
    lines = [json.dumps({"text": row.text, "label": row.label}) for row in dev["one"]]
    (tmp_path / "dev.jsonl").write_text("\n".join(lines))
    found = checked_dev(adapters, {"one": tmp_path / "dev.jsonl", "two": dev["two"]})
    assert [(r.text, r.label) for r in found["one"]] == [(r.text, r.label) for r in dev["one"]]
    assert found["two"] == dev["two"]


def test_another_encoders_adapter_is_refused_before_any_work(adapters, tmp_path_factory, tmp_path):
    folder = tmp_path_factory.mktemp("other") / "encoder"
    other = ax.Encoder.from_pretrained(write_encoder(folder, "xlm-roberta", num_hidden_layers=1))
    refused(other, adapters, tmp_path, FingerprintError, "'one' was trained on encoder")


def test_an_output_is_replaced_only_when_told(encoder, adapters, tmp_path):
    folder = tmp_path / "bundle"
    ax.export(encoder, adapters[:1], folder, quantize="fp32")
    with pytest.raises(OutputExists, match="--overwrite"):
        ax.export(encoder, adapters, folder, quantize="fp32")
    assert read_bundle(folder)[0].adapters == ("one",)
    ax.export(encoder, adapters, folder, quantize="fp32", overwrite=True)
    assert read_bundle(folder)[0].adapters == ("one", "two")
    adapters[0].save(tmp_path / "adapter")
    with pytest.raises(OutputExists, match="holds a 'adapter'"):
        ax.export(encoder, adapters, tmp_path / "adapter", overwrite=True)
    assert left(tmp_path) == ["adapter", "bundle"]


@pytest.mark.parametrize(
    ("quantize", "bounds", "said"),
    [
        ("fp32", "fp32", r"\(torch merged\).*one: largest relative difference"),
        ("int8", "int8", r"\(int8\).*one: largest .* two: largest .*Nothing was written"),
    ],
)
def test_out_of_bounds_the_adapters_are_named_and_nothing_is_left(
    encoder, adapters, tmp_path, monkeypatch, quantize, bounds, said
):
    monkeypatch.setitem(BOUNDS, bounds, Bounds(0.0, 0.0, 1.0, 1.0))
    with pytest.raises(ParityError, match=said) as caught:
        ax.export(encoder, adapters, tmp_path / "bundle", quantize=quantize)
    assert {"one", "two"} <= caught.value.report.keys()
    assert left(tmp_path) == []


def test_an_older_bundle_stays_when_the_new_one_fails(encoder, adapters, tmp_path, monkeypatch):
    ax.export(encoder, adapters, tmp_path / "bundle", quantize="fp32")
    before = (tmp_path / "bundle" / "bundle.json").read_bytes()
    monkeypatch.setitem(BOUNDS, "fp32", Bounds(0.0, 0.0, 1.0, 1.0))
    with pytest.raises(ParityError):
        ax.export(encoder, adapters, tmp_path / "bundle", quantize="fp32", overwrite=True)
    assert (tmp_path / "bundle" / "bundle.json").read_bytes() == before
    assert left(tmp_path) == ["bundle"]


def test_an_adapter_with_nan_is_stopped(encoder, adapters, tmp_path):
    broken = acting(encoder, "broken", 5)
    broken.sites[SITE].a.data[0, 0] = float("nan")
    with pytest.raises(ParityError, match="broken: largest relative difference nan"):
        ax.export(encoder, [*adapters, broken], tmp_path / "bundle", quantize="fp32")
    assert left(tmp_path) == []


def test_the_drop_on_dev_is_reported_by_adapter(encoder, adapters, dev, tmp_path):
    report = ax.export(encoder, adapters, tmp_path / "bundle", dev={"two": dev["two"]})
    assert report["dev"].keys() == {"two"}
    found = report["dev"]["two"]
    assert (found["rows"], found["torch"]) == (len(PROBE_TEXTS), 1.0)
    assert found["drop"] == pytest.approx(1 - found["bundle"]) and found["low"] <= found["drop"]
    assert found["metric"] == "accuracy"  # torch has every row right
    assert read_bundle(tmp_path / "bundle")[0].parity["dev"]["two"] == pytest.approx(found)


def test_a_drop_that_is_sure_fails_by_name(encoder, adapters, dev, tmp_path):
    """A budget below zero: even no drop at all is surely above it."""
    with pytest.raises(ParityError, match=r"two: accuracy on dev falls by .*budget -50") as caught:
        ax.export(
            encoder,
            adapters,
            tmp_path / "a",
            quantize="fp32",
            dev={"two": dev["two"]},
            max_drop=-50,
        )
    assert "one: " not in str(caught.value)
    assert caught.value.report["dev"]["two"]["drop"] == 0.0
    assert left(tmp_path) == []


def test_a_drop_is_found_where_the_bundle_has_another_head(encoder, adapters, dev, tmp_path):
    """The bundle of one adapter, asked as if it were another of its name."""
    ax.export(encoder, adapters, tmp_path / "bundle", quantize="fp32")
    other = acting(encoder, "two", 2, 8, TASK, ["query", "value"])
    said = [row.label for row in dev["two"]]
    rare = min(range(len(TOPICS)), key=lambda i: said.count(TOPICS[i]))
    other.head.bias.data[rare] += 100
    rows = [Example(row.text, TOPICS[rare]) for row in dev["two"]]
    with Runtime.open(tmp_path / "bundle", threads=1) as runtime:
        found = check_drop(encoder, runtime, other, rows, 0.005)
        itself = check_drop(encoder, runtime, adapters[1], dev["two"], 0.0)
    share = said.count(TOPICS[rare]) / len(said)
    assert (found["torch"], found["bundle"]) == (1.0, pytest.approx(share))
    assert 0.005 < found["low"] < found["drop"] and "falls by" in found["failed"]
    assert itself["drop"] == 0 and "failed" not in itself


def test_the_graph_is_small_and_its_weights_lie_beside_it(encoder, adapters, tmp_path):
    ax.export(encoder, adapters, tmp_path / "bundle")
    folder = tmp_path / "bundle"
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    places = {
        e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"
    }
    assert places == {"model.onnx.data"}
    assert (folder / "model.onnx").stat().st_size < 200_000
    assert (folder / "model.onnx.data").stat().st_size < 0.4 * 4 * encoder.parameters
    moved = shutil.move(folder, tmp_path / "moved")
    Runtime.open(moved, threads=1).close()


def test_a_cut_vocabularys_probe_goes_on_with_texts_of_the_corpus(encoder):
    texts = ["Timu yetu imeshinda fainali", "Mgonjwa alipewa dawa"]
    tokenizer = encoder.text.tokenizer.to_str()

    def ids(texts):
        return encoder.text.ids([encoder.prefix + text for text in texts])

    assert probe_ids(encoder) == ids(PROBE_TEXTS)
    for many in (20, 400):
        rows = [*PROBE_TEXTS[:4], *(f"{texts[i % 2]} {i}" for i in range(many))]
        part = cut(tokenizer, {"sw": rows}, margin=0, prefixes=[encoder.prefix])
        own = [row for row in ids(PROBE_TEXTS) if np.isin(row, part.kept).all()]
        held_out = [row for row in ids(rows[9::10]) if np.isin(row, part.kept).all()]
        assert 4 <= len(own) < 10 and held_out
        assert probe_ids(encoder, part) == (own + held_out)[: len(PROBE_TEXTS)]
    assert len(probe_ids(encoder, part)) == len(PROBE_TEXTS)


def test_a_cut_vocabulary_answers_covered_texts_with_the_same_bits(encoder, adapters, tmp_path):
    texts = ["Timu yetu imeshinda fainali", "Mgonjwa alipewa dawa", "The old bridge is closed"]
    corpus = {"sw": [*PROBE_TEXTS, *texts, *(f"{text} {i}" for text in texts for i in range(20))]}
    part = cut(encoder.text.tokenizer.to_str(), corpus, margin=0, prefixes=[encoder.prefix])
    ax.export(encoder, adapters, tmp_path / "whole")
    report = ax.export(encoder, adapters, tmp_path / "cut", vocabulary=part)
    assert report["texts"] == len(probe_ids(encoder, part)) > 30
    with Runtime.open(tmp_path / "whole") as whole, Runtime.open(tmp_path / "cut") as small:
        ids = encoder.text.ids([encoder.prefix + text for text in texts])
        assert all(np.isin(row, part.kept).all() for row in ids)
        for adapter in (None, *(a.name for a in adapters)):
            found = small.embed(texts, adapter)
            assert np.array_equal(found, whole.embed(texts, adapter))
        assert small.facts.vocabulary["rows"] == len(part.kept) < encoder.config.vocab_size
