"""The command line as users run it: its exit code, what it prints."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest

from adaptx.cli.main import main
from tests.conftest import ROOT, SAMPLE

TASKS = ROOT / "recipes" / "data" / "tasks"
PLAIN = {"COLUMNS": "100", "NO_COLOR": "1"}


def run(*arguments, code=0, **environment):
    """The command: in this process, which has loaded everything; in its own with an environment."""
    started = _process if environment else _here
    done = started([str(argument) for argument in arguments], environment)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def _process(arguments, environment):
    return subprocess.run(
        [sys.executable, "-m", "adaptx", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **PLAIN, **environment},
        timeout=600,
    )


def _here(arguments, _):
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name, value in PLAIN.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["adaptx", *arguments])
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
    said = (stream.buffer.getvalue().decode("utf-8") for stream in (out, err))
    return subprocess.CompletedProcess(arguments, code, *said)


def refused(*arguments, **environment):
    """Exit code 2, and one paragraph on stderr."""
    done = run(*arguments, code=2, **environment)
    said = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(said) == 1, done.stderr
    assert done.stdout == ""
    return said[0]


@pytest.fixture(scope="module")
def trained(small_folders, tmp_path_factory):
    """An adapter that the command trained on a small encoder."""
    folder = tmp_path_factory.mktemp("adapters") / "sw-topics"
    done = run(
        "train", "--encoder", small_folders["bert"], "--train", SAMPLE / "train.jsonl",
        "--dev", SAMPLE / "dev.jsonl", "-o", folder, "--language", "sw", "--r", 4,
        "--epochs", 2, "--lr", "5e-3",
    )  # fmt: skip
    assert f"Wrote {folder}: sw-topics (lora; in the bank: a batch may mix it" in done.stdout
    assert "dev accuracy" in done.stdout
    assert "epoch   2  loss" in done.stderr
    return folder


def test_train_writes_an_adapter_and_says_its_score(trained):
    facts = json.loads((trained / "adaptx.json").read_text())
    assert facts["language"] == "sw"
    assert facts["training"]["settings"]["epochs"] == 2
    assert len(facts["scales"]) == 12


def test_predict_gives_each_text_its_own_adapter_or_none(trained):
    done = run("predict", "Timu imeshinda", "Habari", "-a", trained, "-a", "none", "--json")
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first["adapter"] == "sw-topics"
    assert sum(first["scores"].values()) == pytest.approx(1)
    assert first["scores"][first["label"]] == first["score"]
    assert second["adapter"] is None
    assert len(second["vector"]) == 32


def test_predict_reads_a_file_and_a_column_of_adapters(trained, tmp_path):
    path = tmp_path / "texts.tsv"
    path.write_text("text\tuse\nTimu imeshinda\tsw-topics\nHabari\tnone\nRais\t\n")
    done = run("predict", "-i", path, "--adapter-column", "use", "-a", trained)
    kinds = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert kinds[1:] == ["vector", "vector"]
    assert kinds[0] != "vector"
    path.write_text("text\tuse\nTimu imeshinda\tyo-topics\n")
    said = refused("predict", "-i", path, "--adapter-column", "use", "-a", trained)
    assert "yo-topics" in said
    assert "sw-topics" in said


@pytest.mark.optimum
def test_export_writes_a_merged_model_and_its_parity(trained, tmp_path):
    done = run(
        "export", trained, "--merged", "-o", tmp_path / "onnx", "--dev", SAMPLE / "dev.jsonl"
    )
    assert "same answer on 100.0%" in done.stdout
    assert "56 dev rows" in done.stdout
    assert (tmp_path / "onnx" / "model.onnx").is_file()
    said = refused("export", trained, "--merged", "-o", tmp_path / "onnx")
    assert "--overwrite" in said


def test_train_dry_run_writes_nothing(small_folders, tmp_path):
    done = run(
        "train", "--encoder", small_folders["bert"], "--train", SAMPLE / "train.jsonl",
        "-o", tmp_path / "x", "--dry-run", "--epochs", 3,
    )  # fmt: skip
    assert "12 sites" in done.stdout
    assert "33 steps" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("task", "data", "asked", "said"),
    [
        ("token-classification", "names.conll", ["--probe-first"], "not for token-classification"),
        ("retrieval", "translations.tsv", ["--method", "probe"], "retrieval has no head"),
        ("pairs", "inference.tsv", ["--checkpoint-every", "-1"], "checkpoint_every=-1.0 must"),
    ],
)
def test_a_dry_run_refuses_what_the_training_would_before_it_loads_an_encoder(
    tmp_path, task, data, asked, said
):
    common = ["train", "--encoder", "bundled:none", "--task", task, "-o", tmp_path / "x"]
    assert said in refused(*common, "--train", TASKS / data, *asked, "--dry-run")


def test_train_fits_a_probe(small_folders, tmp_path):
    done = run(
        "train", "--encoder", small_folders["bert"], "--train", SAMPLE / "train.jsonl",
        "--dev", SAMPLE / "dev.jsonl", "-o", tmp_path / "p", "--method", "probe",
    )  # fmt: skip
    assert "p (probe; a head on the plain encoder), dev accuracy" in done.stdout
    assert "(epoch" not in done.stdout  # it was solved
    assert not (tmp_path / "p" / "adapter_model.safetensors").exists()


def rows(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


GOOD = [{"text": "Timu imeshinda", "label": "michezo"}, {"text": "Rais", "label": "siasa"}]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent.jsonl", None, "absent.jsonl: there is no such file"),
        ("latin.tsv", b"text\tlabel\nna\xefve\tx\n", "latin.tsv, line 2: this isn't UTF-8"),
        ("column.tsv", b"words\tlabel\nHabari\tx\n", "column.tsv, line 2: no column looks like"),
        ("empty.tsv", b"text\tlabel\nHabari\tx\n\ty\n", "empty.tsv, line 3: the text"),
        ("one.tsv", b"text\tlabel\nHabari\tx\nNjema\tx\n", "one class only"),
        ("text.docx", b"?", "no known format"),
    ],
)
def test_bad_training_data_is_refused(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    output = tmp_path / "out"
    assert said in refused("train", "--train", tmp_path / name, "-o", output)
    assert not output.exists()


def test_an_unknown_label_names_file_line_and_the_allowed(tmp_path):
    train = rows(tmp_path / "train.jsonl", *GOOD)
    dev = rows(tmp_path / "dev.jsonl", GOOD[0], {"text": "Homa", "label": "afya"})
    said = refused("train", "--train", train, "--dev", dev, "-o", tmp_path / "out")
    assert "dev.jsonl, line 2" in said
    assert "'afya'" in said
    assert "michezo, siasa" in said
    labels = refused("train", "--train", train, "--labels", "michezo", "-o", tmp_path / "out")
    assert "train.jsonl, line 2" in labels


def test_a_site_that_matches_nothing_names_the_sites(small_folders, tmp_path):
    said = refused(
        "train", "--encoder", small_folders["bert"], "--train", SAMPLE / "train.jsonl",
        "-o", tmp_path / "out", "--target-modules", "query,valeu",
    )  # fmt: skip
    assert "valeu" in said
    assert "attention.self.value" in said


def test_an_adapter_of_another_encoder_names_both_fingerprints(trained, small_folders):
    said = refused("predict", "Habari", "-a", trained, "--encoder", small_folders["roberta"])
    assert said.count("sha256:") == 2


def test_a_damaged_adapter_is_refused(trained, tmp_path):
    import shutil

    folder = tmp_path / "damaged"
    shutil.copytree(trained, folder)
    with (folder / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(500)
    assert "changed or damaged" in refused("predict", "Habari", "-a", folder)


def test_a_hub_name_without_network_names_the_offline_encoder(tmp_path):
    said = refused(
        "predict", "Habari", "--encoder", "nobody/nothing", HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path),
    )  # fmt: skip
    assert "bundled:multilingual-e5-small" in said


def test_an_output_that_exists_is_kept(trained, small_folders):
    before = (trained / "adaptx.json").read_bytes()
    said = refused(
        "train", "--encoder", small_folders["bert"], "--train", SAMPLE / "train.jsonl",
        "-o", trained,
    )  # fmt: skip
    assert "--overwrite" in said
    assert (trained / "adaptx.json").read_bytes() == before


def test_divergence_names_the_step_and_writes_nothing_half(small_folders, tmp_path):
    done = run(
        "train", "--encoder", small_folders["bert"], "--train", SAMPLE / "train.jsonl",
        "-o", tmp_path / "out", "--lr", "1e29", "--warmup", 0, "--clip", 0, code=2,
    )  # fmt: skip
    assert "Training diverged at step" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seed", "-1"], "seed=-1"),
        (["--clip", "nan"], "clip=nan"),
        (["--lr", "0"], "lr=0.0"),
        (["--r", "0"], "--r 0"),
        (["--pooling", "max"], "mean, cls"),
        (["--metric", "f1"], "macro_f1"),
        (["--target-modules", "qeury"], "qeury"),
    ],
)
def test_a_bad_option_is_refused(small_folders, tmp_path, arguments, said):
    common = ["--encoder", small_folders["bert"], "--train", SAMPLE / "train.jsonl"]
    assert said in refused("train", *common, "-o", tmp_path / "out", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_an_output_below_a_file_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("mine")
    said = refused("train", "--train", SAMPLE / "train.jsonl", "-o", tmp_path / "file" / "x")
    assert "can't be made" in said


def test_an_adapter_that_isnt_there_is_refused(tmp_path):
    assert "no adapter folder" in refused("predict", "Habari", "-a", tmp_path / "nothing")
    said = refused("export", "none", "--merged", "-o", tmp_path / "out")
    assert "no adapter folder none" in said


def test_two_adapters_of_one_name_cant_be_told_by_a_column(trained, tmp_path):
    import shutil

    (tmp_path / "texts.tsv").write_text("text\tuse\nTimu\tsw-topics\n")
    shutil.copytree(trained, tmp_path / "again")
    said = refused(
        "predict", "-i", tmp_path / "texts.tsv", "--adapter-column", "use", "-a", trained,
        "-a", tmp_path / "again",
    )  # fmt: skip
    assert "same name" in said


def test_texts_or_a_file_but_not_both():
    assert "one of the two" in refused("predict")


def test_help_teaches_with_examples():
    for command in ("train", "predict", "export"):
        assert f"adaptx {command}" in run(command, "--help").stdout
    assert run("--version").stdout.startswith("adaptx 0.")


def test_help_loads_neither_torch_nor_onnxruntime():
    code = (
        "import sys\nfrom adaptx.cli.main import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "loaded = {'torch', 'transformers', 'peft', 'onnxruntime'} & set(sys.modules)\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
