"""`adaptx export` of bundles: what it writes and says, and bad input."""

import inspect
import json

import numpy as np
import onnxruntime
import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModel
from typer.main import get_command

import adaptx as ax
from adaptx import storage
from adaptx.cli.main import app
from adaptx.errors import (
    DataError,
    FingerprintError,
    FolderError,
    OptionError,
    OutputExists,
    ParityError,
)
from adaptx.onnx.bundle import MAX_DROP
from adaptx.runtime.layout import read_bundle
from adaptx.runtime.runtime import Runtime
from adaptx.runtime.sessions import EXACT
from tests.cli.conftest import TASK
from tests.cli.test_adapters import adaptx
from tests.conftest import SAMPLE

TEXTS = ["Timu imeshinda", "Mgonjwa alipewa dawa", "Rais alihutubia taifa", "Habari za leo"]
FP32 = ["--quantize", "fp32"]


def labelled(path, encoder, folder, wrong=False):
    """A file with the labels that an adapter gives the sample's texts, or with others."""
    texts = [json.loads(line)["text"] for line in (SAMPLE / "dev.jsonl").open(encoding="utf-8")]
    answers = encoder.predict(texts, ax.Adapter.load(folder, encoder))
    other = dict(zip(TASK.labels, [*TASK.labels[1:], TASK.labels[0]], strict=True))
    rows = [
        {"text": text, "label": other[answer.label] if wrong else answer.label}
        for text, answer in zip(texts, answers, strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_bundle_of_several_adapters_answers_like_torch(small, three, tmp_path, capsys):
    output = tmp_path / "bundle"
    dev = labelled(tmp_path / "dev.jsonl", small, three["sw"])
    asked = ["export", *three.values(), "-o", output, *FP32, "--dev", f"sw={dev}"]
    assert adaptx(*asked, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "3 adapters (sw, yo, probe), fp32, 12 sites" in said
    assert "56 dev rows" in said
    assert not output.exists()
    assert adaptx(*asked) == 0
    said, steps = capsys.readouterr()
    assert "Exporting sw, yo, probe" in steps
    for line in ("fp32  sw", "fp32  probe"):
        assert line in said
    assert [line.split()[:4] for line in said.splitlines() if line.startswith("sw ")] == [
        ["sw", "accuracy", "56", "1.000"]
    ]
    with Runtime.open(output) as runtime:
        for name, folder in three.items():
            wanted = small.predict(TEXTS, ax.Adapter.load(folder, small))
            for found, one in zip(runtime.predict(TEXTS, name), wanted, strict=True):
                assert found.prediction.label == one.label
                assert found.prediction.score == pytest.approx(one.score, abs=1e-4)
    with pytest.raises(OutputExists, match="--overwrite"):
        adaptx(*asked)


def test_the_size_that_a_dry_run_says_is_about_that_of_the_bundle(bundle, three, tmp_path, capsys):
    adaptx("export", *three.values(), "-o", tmp_path / "x", "--dry-run")
    (said,) = [w for w in capsys.readouterr().out.split(",") if "MB" in w]
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()) / 1e6
    assert float(said.split()[1]) == pytest.approx(size, rel=0.1)


def test_sites_all_leaves_room_for_adapters_to_come(small, three, tmp_path, capsys):
    for options, count in (([], 4), (["--sites", "all"], 12)):
        output = tmp_path / f"b{count}"
        assert adaptx("export", three["yo"], "-o", output, *FP32, *options, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["fp32"]["yo"]["failed"] == []
        assert found["megabytes"] > 30
        assert len(read_bundle(output)[0].sites) == count
    with Runtime.open(output) as runtime:
        runtime.add(three["sw"])
    with Runtime.open(tmp_path / "b4") as runtime, pytest.raises(FolderError, match="--sites all"):
        runtime.add(three["sw"])


@pytest.mark.slow
def test_the_vocabulary_is_cut_to_languages_with_a_corpus(small, three, tmp_path, capsys):
    output = tmp_path / "cut"
    asked = ["export", three["sw"], three["yo"], "-o", output, "--languages", "sw"]
    assert adaptx(*asked, "--margin", 3000, "--corpus", SAMPLE / "train.jsonl") == 0
    said, steps = capsys.readouterr()
    assert "Compared with torch on " in said
    assert "Warning: yo is of the language yo, none of --languages sw" in steps
    assert "Warning: sw" not in steps
    assert "of 250,002 pieces" in steps
    assert "sw: of 16 held-out texts" in steps
    facts, _ = read_bundle(output)
    assert facts.vocabulary["rows"] < 20_000
    assert facts.vocabulary["coverage"]["sw"]["held_out"] == 16
    with Runtime.open(output) as runtime:
        assert runtime.predict(TEXTS, "sw")[0].prediction.label in TASK.labels


@pytest.mark.parametrize("kind", ["int8", "fp32"])
def test_ort_adapters_are_written_beside_the_bundle(small, three, tmp_path, capsys, kind):
    output = tmp_path / "bundle"
    asked = ["export", three["sw"], three["probe"], "-o", output, "--quantize", kind]
    assert adaptx(*asked, "--ort-adapters") == 0
    beside = tmp_path / "bundle-ort"
    assert f"Wrote {beside}" in capsys.readouterr().out
    assert sorted(path.name for path in beside.glob("*.onnx_adapter")) == ["sw.onnx_adapter"]
    about = storage.read_manifest(beside, "ort-adapters")["adapters"]["sw"]
    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry(EXACT, "1")
    session = onnxruntime.InferenceSession(str(beside / "model.onnx"), settings)
    head = onnxruntime.InferenceSession(str(beside / about["head"]))
    active, options = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
    active.Load(str(beside / about["adapter"]))
    options.add_active_adapter(active)
    with Runtime.open(output) as runtime:
        for text in TEXTS:
            ids = np.array(runtime.text.ids([about["prefix"] + text]), np.int64)
            feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            (states,) = session.run([about["output"]], feeds, options)
            (logits,) = head.run(["logits"], {about["output"]: states})
            wanted = runtime.logits(runtime.pooled(ids.tolist(), "sw"), "sw")
            assert logits == pytest.approx(wanted, abs=0.05 * float(np.abs(wanted).max()))
    (tmp_path / "other-ort").mkdir()
    (tmp_path / "other-ort" / "mine").write_text("mine")
    with pytest.raises(OutputExists, match="other-ort exists"):
        adaptx("export", three["sw"], "-o", tmp_path / "other", "--ort-adapters")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--languages", "sw"], "sw has no texts"),
        (["--languages", "sw,en", "--corpus", f"sw={SAMPLE / 'dev.jsonl'}"], "en has no texts"),
        (["--languages", "sw", "--corpus", "yo=x.tsv"], "'yo' is none of --languages sw"),
        (["--languages", "sw,sw", "--corpus", "x.tsv"], "different names"),
        (["--corpus", "x.tsv"], "give --languages too"),
        (["--margin", "5"], "give --languages too"),
        (["--max-drop", "1"], "give --dev too"),
        (["--quantize", "int4"], "there is int8, fp32"),
        (["--bank", "fp8"], "none of fp32, fp16"),
        (["--bank", "fp16", *FP32], "fp32 banks"),
        (["--sites", "query"], "there is all"),
        (["--dev", SAMPLE / "dev.jsonl"], "none of the adapters answers"),
        (
            ["--dev", f"ha={SAMPLE / 'dev.jsonl'}"],
            "there is no adapter 'ha' with a task; there is sw",
        ),
        (["--merged", "--bank", "fp16", "--sites", "all"], "takes no --bank, --sites"),
        (["--merged", "--quantize", "int4"], "there is int8, fp32"),
    ],
)
def test_a_bad_option_is_refused_before_any_work(three, tmp_path, options, said):
    with pytest.raises(OptionError, match=said):
        adaptx("export", three["sw"], "-o", tmp_path / "out", *options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_could_only_fail_in_the_end_is_refused_before_any_work(
    small, three, tmp_path, capsys, dry
):
    tagging = ax.tasks.TokenClassification(("O", "B-PER", "I-PER"))
    ax.Adapter.new(small, tagging, LoraConfig(r=2, target_modules=["query"]), name="ner").save(
        tmp_path / "ner"
    )
    asked = ["export", three["sw"], tmp_path / "ner", "-o", tmp_path / "out", *FP32, *dry]
    with pytest.raises(OptionError, match="ner reads every token's state"):
        adaptx(*asked, "--ort-adapters")
    poor = tmp_path / "poor.jsonl"
    poor.write_text("".join(json.dumps({"text": f"{i}"}) + "\n" for i in range(10)))
    with pytest.raises(OptionError, match="fewer than two of the probe texts"):
        adaptx(*asked, "--languages", "sw", "--corpus", poor, "--margin", 0)
    assert "Exporting" not in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ner", "poor.jsonl"]


def test_dev_files_go_to_the_adapters_that_have_their_labels(small, three, tmp_path, capsys):
    dev = labelled(tmp_path / "dev.jsonl", small, three["probe"])
    asked = ["export", *three.values(), "-o", tmp_path / "out", *FP32, "--dry-run"]
    adaptx(*asked, "--dev", dev)
    assert f"{3 * 56} dev rows" in capsys.readouterr().out
    adaptx(*asked, "--dev", dev, "--dev", f"sw={dev}")
    assert f"{3 * 56} dev rows" in capsys.readouterr().out
    (tmp_path / "again.jsonl").write_text(dev.read_text())
    with pytest.raises(OptionError, match="--dev for sw, yo, probe already"):
        adaptx(*asked, "--dev", dev, "--dev", tmp_path / "again.jsonl")
    with pytest.raises(OptionError, match="--dev for sw already"):
        adaptx(*asked, "--dev", f"sw={dev}", "--dev", f"sw={tmp_path / 'again.jsonl'}")
    with pytest.raises(DataError, match="no such file"):
        adaptx(*asked, "--dev", tmp_path / "nothing.tsv")


def test_the_defaults_that_help_shows_are_those_of_the_library():
    options = {p.name: p for p in get_command(app).commands["export"].params}
    assert options["max_drop"].show_default == str(MAX_DROP)
    export = inspect.signature(ax.export).parameters
    assert options["quantize"].show_default.startswith(export["quantize"].default)


def test_a_drop_beyond_the_budget_names_the_adapter_and_writes_nothing(
    small, three, tmp_path, monkeypatch
):
    dev = labelled(tmp_path / "dev.jsonl", small, three["sw"])
    real = Runtime.predict

    def wrong(self, texts, *rest, **options):
        found = real(self, texts, *rest, **options)
        return [found[-1]] * len(found)

    monkeypatch.setattr(Runtime, "predict", wrong)
    with pytest.raises(ParityError, match=r"sw: accuracy on dev falls by .* budget 1\.0%"):
        adaptx("export", three["sw"], "-o", tmp_path / "out", "--dev", dev, "--max-drop", "1")
    assert not (tmp_path / "out").exists()


def test_what_peft_wrote_is_refused_unless_its_base_is_trusted(small, three, tmp_path, capsys):
    model = AutoModel.from_pretrained(small.folder)
    config = LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(tmp_path / "theirs")
    asked = ["export", three["sw"], tmp_path / "theirs", "-o", tmp_path / "out", *FP32]
    with pytest.raises(FolderError, match=r"written by PEFT.*--trust-base.*adapters import"):
        adaptx(*asked)
    assert adaptx(*asked, "--trust-base") == 0
    assert f"theirs is taken to belong to {small.name}; it has no head" in capsys.readouterr().err
    theirs = ax.Adapter.load(tmp_path / "theirs", small)
    with Runtime.open(tmp_path / "out") as runtime:
        wanted = np.stack(small.predict(TEXTS, theirs))
        assert runtime.embed(TEXTS, "theirs") == pytest.approx(wanted, abs=1e-4)


def test_adapters_that_cant_share_a_bundle_are_refused(
    small, small_folders, three, tmp_path, capsys
):
    output = ["-o", tmp_path / "out"]
    with pytest.raises(FolderError, match="no adapter folder none"):
        adaptx("export", "none", *output)
    with pytest.raises(OptionError, match="Two of the adapters are called sw"):
        adaptx("export", three["sw"], three["sw"], *output)
    with pytest.raises(FingerprintError):
        adaptx("export", three["sw"], *output, "-e", small_folders["roberta"])
    dora = LoraConfig(r=2, use_dora=True, target_modules=["query"])
    ax.Adapter.new(small, TASK, dora, name="dora").save(tmp_path / "dora")
    with pytest.raises(OptionError, match="'dora', which a bank can't hold"):
        adaptx("export", tmp_path / "dora", *output)
    with pytest.raises(OptionError, match="there are 2 adapters"):
        adaptx("export", three["sw"], three["yo"], "--merged", *output)
    assert not (tmp_path / "out").exists()
