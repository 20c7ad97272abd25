"""Damaged adapters and bundles, and somebody else's: refused by name, and nothing harmed."""

import json
import re
import shutil

import numpy as np
import onnx
import pytest
from peft import LoraConfig
from safetensors.numpy import load_file, save_file

import adaptx as ax
from adaptx.errors import FingerprintError, FolderError, OptionError
from adaptx.runtime import Runtime
from adaptx.runtime.layout import check_locations, read_bundle, write_bundle
from adaptx.storage import BUNDLE, MANIFEST, sha256, write_json
from tests.encoder.families import write_encoder
from tests.runtime.conftest import TEXTS, TOPICS, acting, with_imported_head
from tests.runtime.test_pool import check_sound

WEIGHTS, HEAD = "adapter_model.safetensors", "head.safetensors"
QUERY = "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"


@pytest.fixture(scope="module")
def good(encoder, tmp_path_factory):
    """A folder of an adapter that fits."""
    task = ax.tasks.Classification(TOPICS)
    return acting(encoder, "new", 50, 4, task, ["query", "dense"]).save(
        tmp_path_factory.mktemp("good") / "new"
    )


@pytest.fixture(scope="module")
def narrow(encoder, tmp_path_factory):
    """A bundle whose graph has banks at the queries of the first layer only, and its answers."""
    folder = tmp_path_factory.mktemp("narrow") / "bundle"
    adapter = acting(encoder, "narrow", 51, 4, None, ["layer.0.attention.self.query"])
    ax.export(encoder, [adapter], folder, quantize="fp32")
    with Runtime.open(folder, threads=1) as runtime:
        yield runtime, runtime.embed(TEXTS, "narrow")


def rewritten(folder, weights=None, head=None, **facts):
    """Change a folder's tensors and what its manifest says, with a fitting sha256."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for name, change in ((WEIGHTS, weights), (HEAD, head)):
        if change:
            tensors = load_file(folder / name)
            change(tensors)
            save_file(tensors, folder / name)
            manifest["files"][name] = sha256(folder / name)
    (folder / MANIFEST).write_text(json.dumps({**manifest, **facts}))


def put(name, value):
    return lambda tensors: tensors.__setitem__(name, value)


def changed(name, change):
    return lambda tensors: tensors.__setitem__(name, change(tensors[name]))


def taken_out(name):
    return lambda tensors: tensors.pop(name)


def with_a_value(name, value):
    def change(tensors):
        tensors[name] = tensors[name].copy()
        tensors[name].flat[3] = value

    return change


def scales(folder, value):
    found = json.loads((folder / MANIFEST).read_text())["scales"]
    return {**found, next(iter(found)): value}


BAD = {
    "a missing tensor": ({"weights": taken_out(QUERY)}, "lacks 1 tensors.*query.lora_A"),
    "an extra tensor": ({"weights": put("lora_C", np.ones(3, "f"))}, "1 tensors too many: lora_C"),
    "a tensor named like a path": (
        {"weights": put("../../etc/passwd", np.ones(3, "f"))},
        r"1 tensors too many: \.\./\.\./etc/passwd",
    ),
    "A and B of two ranks": (
        {"weights": changed(QUERY, lambda a: a[:2].copy())},
        r"query, lora_A \[2, 32\] and lora_B \[32, 4\] don't fit",
    ),
    "inputs of another width": (
        {"weights": changed(QUERY, lambda a: a[:, :30].copy())},
        r"query, A is \[4, 30\]; the graph takes at most 4 x 32",
    ),
    "a tensor of one dimension": (
        {"weights": changed(QUERY, lambda a: a.reshape(-1))},
        r"lora_A \[128\]",
    ),
    "whole numbers": ({"weights": changed(QUERY, lambda a: a.astype("i4"))}, "the dtype I32"),
    "NaN": ({"weights": with_a_value(QUERY, np.nan)}, "query.lora_A.weight' has NaN or infinite"),
    "infinity": ({"weights": with_a_value(QUERY, -np.inf)}, "NaN or infinite"),
    "more than fp16 holds": ({"weights": with_a_value(QUERY, 1e6)}, "beyond float16.*--bank fp32"),
    "NaN in the head": ({"head": with_a_value("weight", np.nan)}, "'weight' has NaN or infinite"),
    "a head of other labels": (
        {"head": changed("weight", lambda w: w[:2].copy())},
        r"head.safetensors has .*a head of 3 labels",
    ),
    "a head of another width": (
        {"head": changed("weight", lambda w: w[:, :16].copy())},
        "a head for 16 inputs, and the encoder is 32 wide",
    ),
    "a head's extra tensor": ({"head": put("gate", np.ones(3, "f"))}, "gate.*a head of 3 labels"),
    "an unknown activation": ({"head_": {"activation": "swish"}}, "has .*a head of 3 labels"),
    "no labels": ({"task": {"kind": "classification", "labels": []}}, "task without labels"),
    "an unknown task": ({"task": {"kind": "ner", "labels": ["a"]}}, "'ner' is none that this"),
    "an unknown pooling": (
        {"task": {"kind": "classification", "labels": list(TOPICS), "pooling": "max"}},
        "'max' is none of mean, cls",
    ),
    "another encoder's": ({"fingerprint": "sha256:" + "0" * 64}, "trained on encoder .*sha256:000"),
    "a method of no bank": ({"method": "dora", "scales": {}}, "'dora', which a bank.*--merged"),
    "a later schema": ({"schema": 2}, "has schema 2, and this adaptx reads 1"),
    "another kind": ({"kind": "merged"}, "holds a 'merged', not a 'adapter'"),
    "a name that is a path": ({"name": "../x"}, "'../x' can't be an adapter's name"),
    "a name that is no Unicode": ({"name": "a\ud800"}, r"adaptx.json: name can't be 'a\\ud800'"),
    "a name for no adapter": ({"name": "none"}, "adaptx.json: An adapter can't be called 'none'"),
    "a prefix that is no Unicode": ({"prefix": "\udfff"}, r"json: prefix can't be '\\udfff'"),
    "no tokens": ({"max_length": 0}, "adaptx.json: max_length can't be 0"),
    "less than no tokens": ({"max_length": -5}, "adaptx.json: max_length can't be -5"),
    "a limit that is no number": ({"max_length": True}, "adaptx.json: max_length can't be True"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_adapter_is_named_and_nothing_changes(runtime, good, tmp_path, case):
    changes, said = BAD[case]
    folder = shutil.copytree(good, tmp_path / "bad")
    changes = {name.rstrip("_"): change for name, change in changes.items()}
    if isinstance(changes.get("head"), dict):
        manifest = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps({**manifest, **changes}))
    else:
        rewritten(folder, **changes)
    refused(runtime, folder, said)


def refused(runtime, folder, said, error=FolderError):
    """Refused with these words; then the runtime answers as before, and takes a good adapter."""
    names = [info.name for info in runtime.adapters()]
    mixed = [names[i % len(names)] for i in range(len(TEXTS))]
    before = runtime.embed(TEXTS, mixed), runtime.predict(TEXTS, mixed[0])
    with pytest.raises(error, match=said):
        runtime.add(folder)
    assert [info.name for info in runtime.adapters()] == names
    check_sound(runtime.pool)
    assert np.array_equal(runtime.embed(TEXTS, mixed), before[0])
    assert [a.prediction for a in runtime.predict(TEXTS, mixed[0])] == [
        a.prediction for a in before[1]
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "2", None, True, [1.0]])
def test_a_scale_that_is_no_number_is_refused(runtime, good, tmp_path, value):
    folder = shutil.copytree(good, tmp_path / "bad")
    rewritten(folder, scales=scales(folder, value))
    refused(runtime, folder, "scale at encoder.layer.0.attention.self.query can't be")


def test_a_site_that_the_graph_lacks_is_named_with_the_command(narrow, good):
    runtime, answers = narrow
    said = r"query, .*where the graph has no bank: export the bundle again.*--sites all"
    with pytest.raises(FolderError, match=said) as caught:
        runtime.add(good)
    assert "layer.0.attention.self.query" not in str(caught.value)  # that one is there
    assert [info.name for info in runtime.adapters()] == ["narrow"]
    assert np.array_equal(runtime.embed(TEXTS, "narrow"), answers)
    check_sound(runtime.pool)


def test_another_encoders_adapter_is_refused(runtime, tmp_path):
    folder = write_encoder(tmp_path / "encoder", "xlm-roberta", num_hidden_layers=1)
    other = ax.Encoder.from_pretrained(folder)
    acting(other, "other", 1).save(tmp_path / "other")
    refused(runtime, tmp_path / "other", other.fingerprint, FingerprintError)


def test_a_method_that_no_bank_holds_is_refused(runtime, encoder, tmp_path):
    config = LoraConfig(r=4, use_dora=True, target_modules=["query"])
    ax.Adapter.new(encoder, None, config, name="dora").save(tmp_path / "dora")
    refused(runtime, tmp_path / "dora", "'dora', which a bank can't hold.*--merged")


def test_pefts_folder_is_refused_with_the_command_that_imports_it(runtime, good, tmp_path):
    folder = shutil.copytree(good, tmp_path / "peft")
    (folder / MANIFEST).unlink()
    refused(runtime, folder, "written by PEFT.*adaptx adapters import .*--encoder")


def test_no_folder_or_an_empty_one_is_refused(runtime, tmp_path):
    refused(runtime, tmp_path / "nowhere", "no adapter folder .*nowhere")
    (tmp_path / "empty").mkdir()
    refused(runtime, tmp_path / "empty", "empty is no adapter's folder")


def test_a_name_that_is_taken_is_refused(runtime, int8, encoder, tmp_path):
    said = r"'wide' already, from .*adapters.wide: remove it first, or rename"
    refused(runtime, int8 / "adapters" / "wide", said, OptionError)


@pytest.mark.parametrize("name", [WEIGHTS, HEAD, "adapter_config.json", "README.md"])
def test_an_adapters_changed_or_missing_file_is_refused(runtime, good, tmp_path, name):
    folder = shutil.copytree(good, tmp_path / "bad")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    refused(runtime, folder, f"{name} was changed or damaged")
    (folder / name).unlink()
    refused(runtime, folder, f"{name} is missing")


def test_weights_that_the_manifest_doesnt_list_are_refused(runtime, good, tmp_path):
    folder = shutil.copytree(good, tmp_path / "bad")
    rewritten(folder, files={HEAD: sha256(folder / HEAD)})
    refused(runtime, folder, f"{WEIGHTS} is missing .or adaptx.json doesn't list it")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"activation": "swish", "norm_eps": 1e-5}, "'swish' is none of tanh, relu, gelu"),
        ({"activation": ["tanh"], "norm_eps": 1e-5}, "none of tanh"),
        ({"activation": "tanh", "norm_eps": float("nan")}, "norm_eps can't be nan"),
        ({"activation": "tanh", "norm_eps": "small"}, "norm_eps can't be 'small'"),
        ({"activation": "tanh"}, "a head of 3 labels"),
    ],
)
def test_a_heads_wrong_options_are_refused(runtime, encoder, tmp_path, options, said):
    adapter = acting(encoder, "new", 1, 4, ax.tasks.Classification(TOPICS))
    folder = with_imported_head(adapter).save(tmp_path / "new")
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "head": options}))
    refused(runtime, folder, said)


def copied(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "bundle")


def files(bundle):
    return sorted(
        path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()
    )


def not_opened(folder, said):
    with pytest.raises(FolderError, match=said):
        Runtime.open(folder, threads=1)


def test_a_changed_byte_in_any_file_is_refused(int8, tmp_path):
    folder = copied(int8, tmp_path)
    names = files(int8)
    assert {"model.onnx", "model.onnx.data", "check.onnx", "tokenizer.json"} < set(names)
    assert len([name for name in names if name.startswith("adapters/")]) > 20
    random = np.random.default_rng(0)
    for name in names:
        path = folder / name
        whole = path.read_bytes()
        places, said = random.integers(0, len(whole), 1), re.escape(path.name)
        if name == BUNDLE:  # anywhere but in its indentation, which means nothing
            places = random.choice([m.start() for m in re.finditer(rb"[a-z0-9]", whole)], 50)
            said = "changed or damaged|as JSON|schema|kind|missing|holds|lists no|doesn't list"
        for place in places:
            content = bytearray(whole)
            content[place] ^= 1
            path.write_bytes(content)
            not_opened(folder, said)
        path.write_bytes(whole)
    Runtime.open(folder, threads=1).close()


def test_every_fact_of_the_bundle_is_under_its_sha256(int8, tmp_path):
    folder = copied(int8, tmp_path)
    manifest = json.loads((folder / BUNDLE).read_text())
    for name, other in (
        ("prefix", "passage: "),
        ("max_length", 4096),
        ("bank_dtype", "float32"),
        ("adapters", ["wide"]),
        ("saturation", 1.0),
        ("parity", {}),
        ("new", 1),
        ("sha256", None),
    ):
        write_json(folder / BUNDLE, {**manifest, name: other})
        not_opened(folder, "bundle.json was changed or damaged")
    write_json(folder / BUNDLE, manifest)
    Runtime.open(folder, threads=1).close()


def test_a_missing_file_is_refused(int8, tmp_path):
    folder = copied(int8, tmp_path)
    for name in files(int8):
        (folder / name).rename(tmp_path / "away")
        not_opened(folder, re.escape(name.rpartition("/")[2]))
        (tmp_path / "away").rename(folder / name)
    not_opened(tmp_path / "nowhere", "no bundle .*nowhere.*adaptx export")


def test_a_file_too_much_is_refused(int8, tmp_path):
    for name in ("model.onnx.bak", "adapters/wide/x.json", "adapters/y/adaptx.json"):
        folder = copied(int8, tmp_path)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
        not_opened(folder, f"doesn't list, {name}")
        shutil.rmtree(folder)
    folder = copied(int8, tmp_path)
    (folder / "adapters" / "linked").symlink_to(tmp_path)
    not_opened(folder, "doesn't list, adapters/linked")


def listed_anew(folder, **changes):
    """bundle.json with fitting sha256 of everything, and other facts."""
    facts, _ = read_bundle(folder)
    write_bundle(folder, type(facts)(**{**facts.__dict__, **changes}))


@pytest.mark.parametrize(
    "name",
    ["model.onnx.data", "model.onnx", "tokenizer.json", f"adapters/wide/{WEIGHTS}"],
)
def test_a_file_that_is_a_link_out_of_the_bundle_is_refused(int8, tmp_path, name):
    folder = copied(int8, tmp_path)
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    not_opened(folder, "leads out of|can't be opened by onnxruntime")


@pytest.mark.parametrize("name", ["model.onnx", "lone.onnx", "check.onnx"])
@pytest.mark.parametrize("where", ["above", "absolute", "roundabout", "long", "linked"])
def test_weights_outside_the_bundle_are_refused(int8, tmp_path, where, name):
    """With a bundle.json that fits."""
    folder = copied(int8, tmp_path)
    shutil.copy(folder / "model.onnx.data", tmp_path / "elsewhere")
    location = {
        "above": "../elsewhere",
        "absolute": str(tmp_path / "elsewhere"),
        "roundabout": "adapters/../../elsewhere",
        "long": "./" * 70 + "../elsewhere",  # its length takes two bytes
        "linked": "inside",
    }[where]
    model = onnx.load(folder / name, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (folder / name).write_bytes(model.SerializeToString())
    if where == "linked":
        (folder / "inside").symlink_to(tmp_path / "elsewhere")
    listed_anew(folder)
    not_opened(folder, "leads out of|takes weights from")


KEY, HERE, AWAY = b"\x0a\x08location", b"\x12\x0fmodel.onnx.data", b"\x12\x0c../elsewhere"


@pytest.mark.parametrize(
    "entry",
    [
        KEY + AWAY,
        AWAY + KEY,
        KEY + HERE + AWAY,  # the later one counts
        HERE + AWAY + KEY,
        b"\x0a\x88\x00location" + AWAY,  # a length of two bytes where one is enough
        b"\x8a\x00\x08location" + AWAY,
    ],
)
def test_a_location_is_found_however_it_is_written(int8, tmp_path, entry):
    """Each is an entry that protobuf reads as the outer file's."""
    read = onnx.StringStringEntryProto.FromString(entry)
    assert (read.key, read.value) == ("location", "../elsewhere")
    data, place = (int8 / "model.onnx").read_bytes(), KEY + HERE
    at = data.index(place)
    assert data[at - 2 : at] == bytes([0x6A, len(place)])
    changed = data[: at - 1] + bytes([len(entry)]) + entry + data[at + len(place) :]
    (tmp_path / "model.onnx").write_bytes(data)
    check_locations(tmp_path)
    (tmp_path / "model.onnx").write_bytes(changed)
    with pytest.raises(FolderError, match=r"weights from elsewhere than model\.onnx\.data"):
        check_locations(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("not JSON", "bundle.json can't be read as JSON"),
        ("[]", "a JSON list, not an object"),
        ("{}", "has schema None"),
        ({"schema": 2}, "has schema 2, and this adaptx reads 1: upgrade"),
        ({"kind": "adapter"}, "holds a 'adapter', not a 'bundle'"),
        ({"files": ["model.onnx"]}, "lists no files"),
    ],
)
def test_a_bundle_json_that_is_none_is_refused(int8, tmp_path, content, said):
    folder = copied(int8, tmp_path)
    if isinstance(content, dict):
        content = json.dumps({**json.loads((folder / BUNDLE).read_text()), **content})
    (folder / BUNDLE).write_text(content)
    not_opened(folder, said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_length": "64"}, "max_length can't be '64'"),
        ({"hidden_size": None}, "hidden_size can't be None"),
        ({"pad_id": True}, "pad_id can't be True"),
        ({"prefix": 1}, "prefix can't be 1"),
        ({"parity": []}, r"parity can't be \[\]"),
        ({"bank_dtype": "bfloat16"}, "bank_dtype can't be 'bfloat16'"),
        ({"quantization": "int4"}, "quantization can't be 'int4'"),
        ({"adapters": 3}, "isn't whole"),
        ({"adapters": ["../../wide"]}, "isn't whole.*can't be an adapter's name"),
        ({"adapters": [5]}, "isn't whole"),
        ({"adapters": ["nobody"]}, "nobody has no adaptx.json"),
    ],
)
def test_facts_of_wrong_types_are_refused(int8, tmp_path, changes, said):
    folder = copied(int8, tmp_path)
    listed_anew(folder, **changes)
    not_opened(folder, said)


@pytest.mark.parametrize("banks", [None, 3, [3], [{"name": "x"}], [{"name": "x", "width": "y"}]])
def test_banks_of_wrong_types_are_refused(int8, tmp_path, banks):
    folder = copied(int8, tmp_path)
    listed_anew(folder, banks=banks)
    not_opened(folder, "bundle.json isn't whole")


def test_a_damaged_tokenizer_or_graph_of_a_fitting_sha256_is_refused(int8, tmp_path):
    for name, said in (("tokenizer.json", "read as a tokenizer"), ("lone.onnx", "onnxruntime")):
        folder = copied(int8, tmp_path)
        (folder / name).write_bytes(b"\x08\x07{}")
        listed_anew(folder)
        not_opened(folder, said)
        shutil.rmtree(folder)


def test_a_bundle_may_lie_behind_a_link(int8, tmp_path):
    (tmp_path / "current").symlink_to(int8)
    with Runtime.open(tmp_path / "current", threads=1) as runtime:
        assert runtime.predict(["OK"], "wide")[0].prediction
