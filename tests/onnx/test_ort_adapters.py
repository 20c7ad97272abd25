import json
import re
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from peft import LoraConfig

import adaptx as ax
from adaptx import storage
from adaptx.adapters.head import Head
from adaptx.errors import FolderError, OptionError, OutputExists, ParityError
from adaptx.onnx import ort_adapters as module
from adaptx.onnx.build import build
from adaptx.onnx.ort_adapters import (
    arrays,
    for_ort,
    head_model,
    load_ort_adapter,
    model_version,
    write_ort_adapters,
)
from adaptx.onnx.quantize import calibrate, quantize
from adaptx.runtime.layout import IDS, INPUT_IDS, MASK

LABELS = ("elimu", "michezo", "siasa")
IDS_BS = np.array([[2, 7, 11, 13, 17, 3], [2, 19, 23, 3, 1, 1]], np.int64)
FEEDS = {INPUT_IDS: IDS_BS, MASK: np.array([[1] * 6, [1] * 4 + [0] * 2], np.int64)}
NAMES = ["hidden", "mean"]


def acting(encoder, name, rank, targets="all-linear", pooling="mean", **options):
    config = LoraConfig(r=rank, init_lora_weights=False, target_modules=targets)
    task = ax.tasks.Classification(LABELS, pooling)
    return ax.Adapter.new(encoder, task, config, name=name, **options).eval()


@pytest.fixture(scope="module")
def adapters(small):
    """Two of different rank, one of them without some sites; a head alone; one without a head."""
    bare = LoraConfig(r=2, init_lora_weights=False, target_modules=["intermediate.dense"])
    return [
        acting(small, "sw", 4, max_length=12),
        acting(small, "yo", 1, ["query", "output.dense"], "cls", language="yo", seed=1),
        ax.Adapter.new(small, ax.tasks.Classification(LABELS), None, name="probe"),
        ax.Adapter.new(small, None, bare, name="bare"),
    ]


@pytest.fixture(scope="module")
def built(small):
    return build(small, list(small.sites))


@pytest.fixture(scope="module")
def written(small, built, adapters, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ort") / "adapters"
    return folder, write(small, built, adapters, folder)


def write(encoder, built, adapters, folder, **options):
    tokenizer = encoder.text.tokenizer.to_str()
    limit = encoder.text.max_length
    return write_ort_adapters(
        *built, adapters, folder, tokenizer=tokenizer, max_length=limit, **options
    )


def open_session(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_active(session, path, names=NAMES):
    adapter, options = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
    adapter.Load(str(path))
    options.add_active_adapter(adapter)
    return session.run(names, FEEDS, options)


def routed(encoder, adapter=None):
    """The oracle: torch through the bank, slot 1."""
    ids, mask = map(torch.from_numpy, FEEDS.values())
    with torch.inference_mode():
        if adapter is None or not adapter.sites:
            return encoder.hidden(ids, mask).numpy()
        route = ax.Adapter.bank([adapter], encoder).route([1])
        return encoder.hidden(ids, mask, route).numpy()


def apart(found, wanted):
    real = FEEDS[MASK].astype(bool)
    return np.abs(found - wanted)[real].max() / np.abs(wanted[real]).max()


def rewritten(path, into, **changes):
    """A file whose tensors are replaced, or taken out by None."""
    read = onnxruntime.AdapterFormat.read_adapter(str(path))
    tensors = {name: np.array(v.numpy()) for name, v in read.get_parameters().items()} | changes
    made = onnxruntime.AdapterFormat()
    made.set_adapter_version(read.get_adapter_version())
    made.set_model_version(read.get_model_version())
    value = onnxruntime.OrtValue.ortvalue_from_numpy
    made.set_parameters({name: value(v) for name, v in tensors.items() if v is not None})
    made.export_adapter(str(into))
    return into


def test_active_adapters_answer_as_torch_and_a_run_without_one_is_the_plain_encoder(
    small, adapters, written
):
    folder, report = written
    session = open_session(folder / "model.onnx")
    assert [value.name for value in session.get_inputs()] == [INPUT_IDS, MASK]
    plain = session.run(NAMES, FEEDS)[0]
    assert apart(plain, routed(small)) < 1e-4
    for adapter in adapters:
        if not adapter.sites:
            continue
        hidden, mean = run_active(session, folder / f"{adapter.name}.onnx_adapter")
        wanted = routed(small, adapter)
        assert apart(hidden, wanted) < 1e-4 < 1e-2 < apart(hidden, plain)
        pooled = small_mean(wanted)
        np.testing.assert_allclose(mean, pooled, rtol=1e-4, atol=1e-4 * np.abs(pooled).max())
        assert report[adapter.name]["moves"] > 1e-2
    assert np.array_equal(session.run(NAMES, FEEDS)[0], plain)  # nothing stays behind
    assert set(report) == {"sw", "yo", "bare"}


def small_mean(hidden):
    weights = FEEDS[MASK][:, :, None]
    return (hidden * weights).sum(1) / weights.sum(1)


@pytest.mark.parametrize("family", ["xlm-roberta", "modernbert"])
def test_other_graphs_take_adapters_too(small_folders, tmp_path, family):
    encoder = ax.Encoder.from_pretrained(small_folders[family])
    adapter = acting(encoder, "sw", 3)
    write(encoder, build(encoder, list(encoder.sites)), [adapter], tmp_path / "ort")
    session = open_session(tmp_path / "ort" / "model.onnx")
    found = run_active(session, tmp_path / "ort" / "sw.onnx_adapter")[0]
    assert apart(found, routed(encoder, adapter)) < 1e-4
    assert apart(session.run(NAMES, FEEDS)[0], routed(encoder)) < 1e-4


def test_the_int8_graph_answers_as_it_does_with_slots(small, built, adapters, tmp_path):
    """One rewriting, two graphs: the bundle's, which its gate proves, and this one."""
    model, banks = built
    own = arrays(adapters[0], banks)
    slots = {name: np.concatenate([array * 0, array]) for name, array in own.items()}
    in_slots = {**FEEDS, IDS: np.array([[1]], np.int64), **slots}
    calibration = [{name: value[:1] for name, value in FEEDS.items()} | slots]
    calibration[0][IDS] = np.array([[1]], np.int64)
    small8, _ = quantize(model, calibrate(model, calibration, 6))
    assert any(node.op_type == "QuantizeLinear" for node in small8.graph.node)
    write(small, (small8, banks), adapters[:1], tmp_path / "ort")
    with_slots = tmp_path / "slots.onnx"
    onnx.save(small8, with_slots)
    wanted = open_session(with_slots).run(NAMES, in_slots)[0]
    session = open_session(tmp_path / "ort" / "model.onnx")
    found = run_active(session, tmp_path / "ort" / "sw.onnx_adapter")[0]
    assert apart(found, wanted) < 1e-5
    in_slots[IDS] = np.array([[0]], np.int64)
    wanted = open_session(with_slots).run(NAMES, in_slots)[0]
    assert apart(session.run(NAMES, FEEDS)[0], wanted) < 1e-5


def test_defaults_may_lie_beside_the_graph_with_the_weights(small, built, adapters, tmp_path):
    """As they do for wider encoders: small ones are below the size from which they are moved."""
    made = for_ort(*built)
    onnx.save_model(
        made,
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="m.onnx.data",
        size_threshold=100,
    )
    session = open_session(tmp_path / "m.onnx")
    assert apart(session.run(NAMES, FEEDS)[0], routed(small)) < 1e-4
    inputs = FEEDS | arrays(adapters[0], built[1])
    assert apart(session.run(NAMES, inputs)[0], routed(small, adapters[0])) < 1e-4


def test_the_model_that_was_given_stays_as_it_was(built):
    model, banks = built
    before = model.SerializeToString(deterministic=True)
    made = for_ort(model, banks)
    assert model.SerializeToString(deterministic=True) == before
    assert IDS not in {value.name for value in made.graph.input}
    onnx.checker.check_model(made)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize(
    "options", [{}, {"activation": "tanh"}, {"activation": "gelu", "norm_eps": 1e-5}]
)
def test_heads_answer_as_torch(small, pooling, options):
    torch.manual_seed(0)
    head = Head(small.hidden_size, 3, **options)
    if options.get("norm_eps"):
        torch.nn.init.normal_(head.norm.weight)
    tensors = {name: tensor.detach().numpy() for name, tensor in head.state_dict().items()}
    session = onnxruntime.InferenceSession(
        head_model(tensors, head.options, pooling).SerializeToString()
    )
    hidden = np.random.default_rng(0).standard_normal((4, 5, small.hidden_size), np.float32)
    taken = {"hidden": hidden} if pooling == "cls" else {"mean": hidden.mean(1)}
    pooled = hidden[:, 0] if pooling == "cls" else hidden.mean(1)
    wanted = head(torch.from_numpy(pooled)).detach().numpy()
    np.testing.assert_allclose(session.run(["logits"], taken)[0], wanted, rtol=1e-4, atol=1e-5)


def test_the_folder_says_all_that_its_user_needs(small, built, written):
    folder, report = written
    manifest = storage.read_manifest(folder, "ort-adapters")
    for name in manifest["files"]:
        storage.check_file(folder, name, manifest)
    assert set(manifest["files"]) == {
        "model.onnx", "model.onnx.data", "tokenizer.json", "README.md", "sw.onnx_adapter",
        "yo.onnx_adapter", "bare.onnx_adapter", "heads/sw.onnx", "heads/yo.onnx",
        "heads/probe.onnx",
    }  # fmt: skip
    assert manifest["fingerprint"] == small.fingerprint
    assert manifest["report"] == json.loads(json.dumps(report))
    assert [bank["name"] for bank in manifest["banks"]] == [bank.name for bank in built[1]]
    assert manifest["adapters"]["sw"] == {
        "adapter": "sw.onnx_adapter", "head": "heads/sw.onnx", "output": "mean",
        "task": {"kind": "classification", "labels": list(LABELS), "pooling": "mean"},
        "labels": list(LABELS), "prefix": small.prefix, "max_length": 12, "language": None,
    }  # fmt: skip
    yo, probe, bare = (manifest["adapters"][name] for name in ("yo", "probe", "bare"))
    assert (yo["output"], yo["language"]) == ("hidden", "yo")
    assert yo["max_length"] == small.text.max_length
    assert probe["adapter"] is None and probe["head"] == "heads/probe.onnx"
    assert bare["head"] is None and bare["task"] is None and bare["labels"] == []


def said_by_readme(folder):
    """What the Python example of a folder's README prints, run without this package."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code = code.replace("path/to/this/folder", str(folder))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.strip()


def test_the_readmes_example_gives_torchs_label(small, adapters, written):
    (answer,) = small.predict(["Habari za leo"], adapters[0])
    assert said_by_readme(written[0]) == answer.label


PAIR = ("Habari za leo", "Hujambo")


@pytest.mark.parametrize(
    ("task", "asked", "said"),
    [
        (ax.tasks.MultiLabel(LABELS, threshold=0.49), PAIR[0], lambda a: str(list(a.labels))),
        (ax.tasks.PairClassification(LABELS, "cls"), PAIR, lambda a: a.label),
        (ax.tasks.Similarity(mean=3.0, scale=0.5), PAIR, lambda a: a.score),
        (ax.tasks.Retrieval(), PAIR[0], lambda a: a),
        (ax.tasks.Retrieval(pooling="cls"), PAIR[0], lambda a: a),
        (None, PAIR[0], lambda a: a),
    ],
)
def test_the_readmes_example_answers_as_torch_in_each_kind_of_task(
    small, built, tmp_path, task, asked, said
):
    config = LoraConfig(r=2, init_lora_weights=False, target_modules=["query"])
    adapter = ax.Adapter.new(small, task, config, name="one", seed=3).eval()
    if task is not None and task.kind == "multi-label":
        adapter.head.bias.data = torch.tensor([1.0, -1.0, 0.0])
    write(small, built, [adapter], tmp_path / "ort")
    found = said_by_readme(tmp_path / "ort")
    wanted = said(small.predict([asked], adapter)[0])
    if isinstance(wanted, str):
        assert found == wanted and wanted not in ("[]", str(list(LABELS)))
    else:
        values = np.array(found.strip("[]").split(), float).squeeze()
        assert values == pytest.approx(wanted, abs=1e-4)
    kind = "null" if task is None else task.kind
    assert f"| {kind} | `about" in (tmp_path / "ort" / "README.md").read_text(encoding="utf-8")


def test_our_loader_gives_the_arrays_and_knows_the_encoder(small, built, adapters, written):
    folder, banks = written[0], built[1]
    version = model_version(small.fingerprint)
    found = load_ort_adapter(folder / "yo.onnx_adapter", banks, version=version)
    wanted = arrays(adapters[1], banks)
    assert list(found) == list(wanted)
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    with pytest.raises(FolderError, match="made for another encoder"):
        load_ort_adapter(folder / "yo.onnx_adapter", banks, version=version + 1)


SITE = "encoder.layer.1.output.dense"  # the only one in its banks


def test_what_onnxruntime_takes_in_silence_our_loader_refuses(small, built, written, tmp_path):
    folder, banks = written[0], built[1]
    session, whole = open_session(folder / "model.onnx"), folder / "yo.onnx_adapter"
    wanted = run_active(session, whole)[0]

    lacking = rewritten(whole, tmp_path / "lacking", **{f"{SITE}.b": None})
    assert apart(run_active(session, lacking)[0], wanted) > 1e-3  # the site's update is lost
    with pytest.raises(FolderError, match=rf"lacks 1 tensors: {SITE}\.b"):
        load_ort_adapter(lacking, banks)

    holed = np.full((1, 1, small.hidden_size), np.nan, np.float32)
    holed = rewritten(whole, tmp_path / "nan", **{f"{SITE}.b": holed})
    assert np.isnan(run_active(session, holed)[0]).any()
    with pytest.raises(FolderError, match=rf"{SITE}\.b has NaN or infinite"):
        load_ort_adapter(holed, banks)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda a: {"query.a": a}, "1 tensors too many: query.a"),
        (lambda a: {f"{SITE}.a": a.astype(np.float16)}, rf"{SITE}\.a must be fp32"),
        (lambda a: {f"{SITE}.a": a[..., :-1].copy()}, rf"{SITE}\.a \[1, 1, 63\] instead of"),
        (lambda a: {f"{SITE}.a": a[0]}, rf"{SITE}\.a \[1, 64\] instead of \[1, 1, 64\]"),
        (lambda a: {f"{SITE}.a": np.repeat(a, 2, 0)}, r"\[2, 1, 64\] instead of"),
        (lambda a: {f"{SITE}.a": np.repeat(a, 3, 1)}, r"\[1, 3, 64\] instead of"),
        (lambda a: {f"{SITE}.a": a[:, :0].copy()}, r"\[1, 0, 64\] instead of"),
        (lambda a: {f"{SITE}.a": a * np.inf}, rf"{SITE}\.a has NaN or infinite"),
    ],
)
def test_our_loader_refuses_what_fails_in_onnxruntimes_run(
    built, adapters, written, tmp_path, changed, message
):
    folder, banks = written[0], built[1]
    changes = changed(arrays(adapters[1], banks)[f"{SITE}.a"])
    path = rewritten(folder / "yo.onnx_adapter", tmp_path / "bad", **changes)
    with pytest.raises(FolderError, match=message):
        load_ort_adapter(path, banks)


def test_a_damaged_file_is_refused(built, written, tmp_path):
    whole = (written[0] / "yo.onnx_adapter").read_bytes()
    for data in (b"", whole[: len(whole) // 2], b"PK" + bytes(500)):
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(FolderError, match=r"damaged, or no \.onnx_adapter"):
            load_ort_adapter(tmp_path / "bad", built[1])
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FolderError, match="no adapter file"):
            load_ort_adapter(path, built[1])


def test_what_cannot_be_exported_is_refused_and_nothing_written(
    small, small_folders, built, adapters, tmp_path
):
    sw = adapters[0]
    with pytest.raises(OptionError, match="no adapter"):
        write(small, built, [], tmp_path / "ort")
    with pytest.raises(OptionError, match="Two adapters are called sw"):
        write(small, built, [sw, sw], tmp_path / "ort")
    dora = LoraConfig(r=2, use_dora=True, target_modules=["query"])
    dora = ax.Adapter.new(small, None, dora, name="dora")
    with pytest.raises(OptionError, match=r"dora can't be an \.onnx_adapter file"):
        write(small, built, [sw, dora], tmp_path / "ort")
    other = ax.Encoder.from_pretrained(small_folders["roberta"])
    with pytest.raises(OptionError, match="several encoders"):
        write(small, built, [sw, acting(other, "other", 2)], tmp_path / "ort")
    few = build(small, [name for name in small.sites if name.endswith("query")])
    with pytest.raises(FolderError, match=r"attaches at .*key"):
        write(small, few, [sw], tmp_path / "ort")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "ort").mkdir()
    (tmp_path / "ort" / "mine").touch()
    with pytest.raises(OutputExists):
        write(small, built, [sw], tmp_path / "ort", overwrite=True)


def test_a_fresh_adapter_moves_nothing_and_is_written(small, built, tmp_path):
    fresh = ax.Adapter.new(small, None, LoraConfig(r=2, target_modules=["query"]), name="fresh")
    assert write(small, built, [fresh], tmp_path / "ort") == {"fresh": {"moves": 0.0}}


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (lambda tensors: {n: a * 0 for n, a in tensors.items()}, "as with an adapter"),
        (lambda tensors: {**tensors, f"{SITE}.b": tensors[f"{SITE}.b"] + np.nan}, "NaN"),
    ],
)
def test_an_adapter_that_was_lost_on_the_way_is_found(
    small, built, adapters, tmp_path, monkeypatch, lost, message
):
    monkeypatch.setattr(module, "arrays", lambda *given: lost(arrays(*given)))
    with pytest.raises((ParityError, FolderError), match=message):
        write(small, built, adapters[:1], tmp_path / "ort")
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_that_onnxruntime_reads_otherwise_is_found(
    small, built, adapters, tmp_path, monkeypatch
):
    def other(path, banks, **options):
        return {name: array * 2 for name, array in load_ort_adapter(path, banks).items()}

    monkeypatch.setattr(module, "load_ort_adapter", other)
    with pytest.raises(ParityError, match="as with its own arrays given as inputs"):
        write(small, built, adapters[:1], tmp_path / "ort")


def test_a_head_that_answers_otherwise_is_found(small, built, adapters, tmp_path, monkeypatch):
    def other(tensors, options, pooling):
        return head_model({**tensors, "bias": tensors["bias"] + 1}, options, pooling)

    monkeypatch.setattr(module, "head_model", other)
    with pytest.raises(ParityError, match=r"heads/probe\.onnx is .* from the head in NumPy"):
        write(small, built, adapters[2:3], tmp_path / "ort")
    assert list(tmp_path.iterdir()) == []
