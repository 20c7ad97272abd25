"""`adaptx eval` as users run it, and what docs/evaluation.md says of it."""

import json
import shlex
import shutil

import pytest
from huggingface_hub import ModelCard

import adaptx as ax
from adaptx.cli.main import app
from adaptx.data.read import read_examples
from tests.cli.test_cli import refused, rows, run
from tests.conftest import BUNDLED, ROOT, SAMPLE
from tests.test_readme import blocks

PAGE = ROOT / "docs" / "evaluation.md"
DATA = ROOT / "recipes" / "data"


@pytest.fixture(scope="module")
def probes(small, tmp_path_factory):
    """The folders of two adapters that differ in their pooling."""
    folder = tmp_path_factory.mktemp("probes")
    for pooling in ("mean", "cls"):
        task = ax.tasks.Classification(pooling=pooling)
        adapter = ax.train(
            small, task, None, name=pooling, train=SAMPLE / "train.jsonl", language="sw"
        )
        adapter.save(folder / pooling)
    return folder


@pytest.mark.slow
def test_the_pages_commands_and_python_run(small_folders, tmp_path, monkeypatch, capsys):
    """From top to bottom, with a small encoder, in this process: loading torch takes longest."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks(PAGE) for line in block.splitlines()]
    assert len(lines) == 7
    said = []
    for line in lines:
        name, *arguments = shlex.split(line)
        assert name == "adaptx"
        if arguments[0] == "train":
            arguments += ["--encoder", str(small_folders["bert"])]
        app(arguments, standalone_mode=False)
        said.append(capsys.readouterr().out)
    assert "recall" in said[2]
    assert all(word in said[3] for word in ("sw", "en", "fr", "all"))
    assert "accuracy, less sw-mean's" in said[4]
    names = {path.name for path in (tmp_path / "runs" / "eval").iterdir()}
    assert {"scores.png", "report.json", "confusion-all-2-sw-cls.png"} <= names
    assert "| en (test.jsonl) | 70 |" in (tmp_path / "adapters/sw-mean/README.md").read_text()

    (code,) = blocks(PAGE, "python")
    exec(code.replace(BUNDLED, str(small_folders["bert"])), {})
    assert "Difference(metric='macro_f1'" in capsys.readouterr().out


def test_json_has_everything_and_the_folder_holds_the_same(small, probes, tmp_path):
    output = tmp_path / "out"
    done = run(
        "eval", probes / "mean", probes / "cls", "--data", DATA / "swh", "-d",
        f"en={DATA / 'eng' / 'test.jsonl'}", "-o", output, "--json",
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found == json.loads((output / "report.json").read_text())
    assert found["data"].keys() == {"swh", "en"}
    assert found["adapters"]["cls"]["differences_to_first"].keys() == {"swh", "en", "all"}
    manifest = json.loads((output / "adaptx.json").read_text())
    assert manifest["kind"] == "evaluation"
    assert manifest["files"].keys() == {path.name for path in output.iterdir()} - {"adaptx.json"}
    wanted = ax.evaluate(
        small, ax.Adapter.load(probes / "cls", small), read_examples(DATA / "eng" / "test.jsonl")
    )
    entry = found["adapters"]["cls"]["languages"]["en"]
    assert entry["accuracy"] == wanted.scores["accuracy"]
    assert entry["confusion"] == wanted.confusion.tolist()
    assert "--overwrite" in refused("eval", probes / "cls", "-d", DATA / "swh", "-o", output)


def test_a_card_is_written_into_each_adapters_folder(small, probes, tmp_path):
    for name in ("mean", "cls"):
        shutil.copytree(probes / name, tmp_path / name)
    before = (tmp_path / "cls" / "head.safetensors").read_bytes()
    run("eval", tmp_path / "mean", tmp_path / "cls", "-d", DATA / "swh", "--card")
    for name in ("mean", "cls"):
        adapter = ax.Adapter.load(tmp_path / name, small)
        assert set(adapter.facts.evaluation) == {"swh"}
        card = ModelCard.load(tmp_path / name / "README.md")
        (accuracy, _, _) = card.data.eval_results
        assert accuracy.metric_value == round(adapter.facts.evaluation["swh"]["accuracy"], 4)
    assert (tmp_path / "cls" / "head.safetensors").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"mean", "cls"}


def test_adapters_of_different_encoders_and_of_one_name_stand_side_by_side(
    small_folders, probes, tmp_path
):
    encoder = ax.Encoder.from_pretrained(small_folders["roberta"])
    other = ax.train(
        encoder, ax.tasks.Classification(), None, name="mean", train=SAMPLE / "train.jsonl"
    )
    other.save(tmp_path / "other")
    done = run("eval", probes / "mean", tmp_path / "other", "-d", DATA / "swh", "--json")
    found = json.loads(done.stdout)["adapters"]
    assert list(found) == [str(probes / "mean"), str(tmp_path / "other")]
    assert len({entry["encoder"] for entry in found.values()}) == 2
    same = ["--encoder", small_folders["bert"]]
    done = run("eval", probes / "mean", tmp_path / "other", "-d", DATA / "swh", *same, code=2)
    assert done.stderr.count("sha256:") == 2
    assert "Evaluating" not in done.stderr


def test_its_help_teaches():
    said = run("eval", "--help").stdout
    for part in ("adaptx eval adapters/sw-topics --data", "sentence, tweet", "adapter names"):
        assert part in said


def test_a_dry_run_checks_and_writes_nothing(probes, tmp_path):
    done = run("eval", probes / "mean", "-d", DATA / "swh", "-o", tmp_path / "out", "--dry-run")
    assert done.stdout == "Would evaluate mean on swh (56 rows).\n"
    assert list(tmp_path.iterdir()) == []


def test_what_cant_be_evaluated_is_refused(small, probes, tmp_path):
    mean, swh = probes / "mean", DATA / "swh"
    data = rows(tmp_path / "two.jsonl", *({"text": "Habari", "label": x} for x in ("a", "b")))
    two = ax.train(small, ax.tasks.Classification(), None, name="two", train=data)
    two.save(tmp_path / "two")
    ax.Adapter.new(small, None, None, name="bare").save(tmp_path / "bare")

    said = refused("eval", mean, tmp_path / "two", "-d", swh)
    assert "different labels" in said
    assert "only 'two' has a, b" in said
    assert "two.jsonl, line 1: unknown label 'a'" in refused("eval", mean, "-d", data)
    assert "has no head" in refused("eval", tmp_path / "bare", "-d", swh)
    ax.Adapter.new(small, ax.tasks.MaskedLanguage(), None, name="mlm").save(tmp_path / "mlm")
    texts = ["-d", DATA / "tasks" / "passages.txt", "--encoder", tmp_path / "absent"]
    assert "is measured in training, on --dev" in refused("eval", tmp_path / "mlm", *texts)
    assert "given twice" in refused("eval", mean, mean, "-d", swh)
    assert "no adapter folder" in refused("eval", tmp_path / "absent", "-d", swh)
    assert "same name" in refused("eval", mean, "-d", swh, "-d", swh)
    assert "no such file" in refused("eval", mean, "-d", tmp_path / "absent.tsv")
    assert "has no test file" in refused("eval", mean, "-d", tmp_path)
    for name in ("all", "a/b", "a b"):
        assert "name of a data set" in refused("eval", mean, "-d", f"{name}={swh}")
