"""`adaptx train --config many.yaml`, run as users run it; docs/many.md's file is the one."""

import json
import re
import signal

import pytest
import yaml

import adaptx as ax
from adaptx.errors import OptionError
from adaptx.training.many_file import many_of
from adaptx.training.runs import read_run
from tests.cli.test_cli import refused, run
from tests.conftest import ROOT, SAMPLE
from tests.training.test_many import signal_at

PAGE = (ROOT / "docs" / "many.md").read_text()


def write(path, adapters, **top):
    defaults = {"epochs": 1, "lora": {"r": 2}, "train": str(SAMPLE / "train.jsonl")}
    path.write_text(yaml.safe_dump({"defaults": defaults, "adapters": adapters, **top}))
    return path


def test_the_pages_file_trains_what_it_says(small_folders, tmp_path, monkeypatch):
    """With the page's data where it says, and a small encoder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADAPTX_RUNS")
    said = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.S)[1])
    for one in said["adapters"]:
        for split in ("train", "dev"):
            path = tmp_path / one[split]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((SAMPLE / f"{split}.jsonl").read_bytes())
    said["defaults"]["epochs"] = 2
    (tmp_path / "many.yaml").write_text(yaml.safe_dump(said))
    command = ["train", "--config", "many.yaml", "-o", "adapters", "-e", small_folders["bert"]]
    dry = run(*command, "--dry-run").stdout
    assert "Would train 3 adapters, 8 at a time, 126 steps in all" in dry
    assert not (tmp_path / "adapters").exists()
    done = run(*command, "--run", "runs/many")
    assert "Wrote 3 adapters" in done.stdout and "(3 of 3 done)" in done.stderr
    encoder = ax.Encoder.from_pretrained(small_folders["bert"])
    for one in said["adapters"]:
        adapter = ax.Adapter.load(tmp_path / "adapters" / one["name"], encoder)
        assert adapter.facts.language == one["language"]
        lr = float(one.get("lr", said["defaults"]["lr"]))  # YAML takes 5e-4 for a text
        assert adapter.facts.training["settings"]["lr"] == lr
        assert read_run(tmp_path / "runs" / "many" / one["name"]).state == "done"
        assert f"many/{one['name']} " in run("runs", "list").stdout
    again = run(*command)
    assert again.stderr.count("skipped") == 3 and "All 3 adapters" in again.stdout


def test_a_dropped_adapter_shows_in_the_exit_code(small_folders, tmp_path):
    adapters = [{"name": "good"}, {"name": "bad", "lr": 1e28, "clip": 0.0, "epochs": 2}]
    path = write(tmp_path / "many.json", adapters)
    path.write_text(json.dumps(yaml.safe_load(path.read_text())))  # JSON is YAML
    done = run(
        "train", "--config", path, "-o", tmp_path / "made", "-e", small_folders["bert"], code=1
    )
    assert "Wrote 1 adapters" in done.stdout and "bad was dropped" in done.stderr
    assert [folder.name for folder in (tmp_path / "made").iterdir()] == ["good"]


def test_the_last_good_epoch_of_one_that_diverges_is_saved(small_folders, tmp_path):
    late = {"lr": 1e28, "clip": 0.0, "warmup": 0.5, "epochs": 4, "batch_size": 168}
    path = write(tmp_path / "many.yaml", [{"name": "good"}, {"name": "late", **late}])
    command = ["train", "--config", path, "-o", tmp_path / "made", "-e", small_folders["bert"]]
    done = run(*command, code=1)
    assert "Wrote 1 adapters" in done.stdout
    assert "The adapter of epoch 1 is kept. Lower the learning rate" in done.stderr
    assert f"or raise the warm-up. It is in {tmp_path / 'made' / 'late'}." in done.stderr
    kept = ax.Adapter.load(tmp_path / "made" / "late", ax.Encoder.from_pretrained(command[-1]))
    assert len(kept.facts.training["history"]) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_job_that_was_cut_off_goes_on(small_folders, tmp_path, number, code):
    made, runs = tmp_path / "made", tmp_path / "runs"
    path = write(
        tmp_path / "many.yaml", [{"name": "a"}, {"name": "b", "epochs": 2}, {"name": "c"}], slots=2
    )
    command = ["train", "--config", path, "-o", made, "-e", small_folders["bert"], "--run", runs]
    with signal_at(30, number):  # of 11 steps of a, 22 of b, 11 of c
        cut = run(*command, code=code)
    assert f"{number.name} ended the training of b, c after step" in cut.stderr
    assert f"--run {runs} --resume" in cut.stderr
    assert "b has a run already, which is interrupted: go on with it by --resume" in refused(
        *command
    )
    assert "--resume needs --run" in refused(*command[:-2], "--resume")
    again = run(*command, "--resume")
    assert "a is there already" in again.stderr and "Wrote 2 adapters" in again.stdout
    assert again.stderr.count("goes on after step") == 2
    assert sorted(folder.name for folder in made.iterdir()) == ["a", "b", "c"]
    assert {read_run(folder).state for folder in runs.iterdir()} == {"done"}


def test_what_an_earlier_job_finished_is_written_where_it_is_gone(small_folders, tmp_path):
    made = tmp_path / "made"
    path = write(tmp_path / "many.yaml", [{"name": "a"}])
    command = ["train", "--config", path, "-o", made, "-e", small_folders["bert"]]
    run(*command, "--run", tmp_path / "runs")
    (made / "a").rename(tmp_path / "away")
    assert "Wrote 1 adapters" in run(*command, "--run", tmp_path / "runs", "--resume").stdout
    weights = "adapter_model.safetensors"
    assert (made / "a" / weights).read_bytes() == (tmp_path / "away" / weights).read_bytes()


def test_options_that_the_file_has_are_refused(tmp_path):
    path = write(tmp_path / "many.yaml", [{"name": "x"}])
    for option, said in {
        "--epochs=3": "--epochs would have no effect .*: write epochs: … there, under defaults or",
        "--dropout=0.1": r"write lora: {lora_dropout: …} there",
        "--lora-alpha=3": r"write lora: {lora_alpha: …} there",
        "--track=wandb": "--track can't be had for a file of many",
        "--checkpointing": "--checkpointing can't be had",
        "--accumulate=2": "--accumulate can't be had",
        "--method=dora": "--method can't be had",
    }.items():
        assert re.search(
            said, refused("train", "--config", path, "-o", tmp_path / "made", option)
        ), option
    assert "'x' is used twice" in refused(
        "train", "--config", write(tmp_path / "two.yaml", [{"name": "x"}, {"name": "x"}]),
        "-o", tmp_path / "made",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"adapters": [{"name": "x", "train": "a"}], "slot": 3}, "'slot'; did you mean slots?"),
        ({"adapters": [{"name": "x", "train": "a", "epocs": 3}]}, "adapter 1: .*mean epochs?"),
        (
            {"adapters": [{"name": "x", "train": "a"}], "defaults": {"rank": 3}},
            "defaults: .*'rank'",
        ),
        ({"adapters": []}, "at least one"),
        ({"adapters": ["x"]}, "adapter 1: this must be named values"),
        ({"adapters": [{"train": "a"}]}, "adapter 1: name is missing"),
        ({"adapters": [{"name": "x"}]}, "adapter 1: train is missing"),
        ({"adapters": [{"name": "x", "train": "a"}], "slots": 0}, "slots=0"),
        ({"adapters": [{"name": "x", "train": "a"}], "slots": True}, "slots=True"),
        (
            {"adapters": [{"name": "x", "train": "a"}], "divide": "tasks"},
            "is none of adapters, rows",
        ),
        ({"adapters": [{"name": "x", "train": "a"}], "precision": False}, "precision must be text"),
        (
            {"adapters": [{"name": "x", "train": "a", "lora": 8}]},
            "lora must be named values, not 8",
        ),
        ({"adapters": [{"name": "x"}], "defaults": {"lora": 8}}, "defaults: lora must be"),
        ({"adapters": [{"name": "x", "train": "a", "dev": 5}]}, "adapter 1: dev must be text"),
        (yaml.safe_load("adapters: [{name: x, train: a, language: no}]"), "language .* in quotes"),
        ({"adapters": [{"name": "x", "train": "a", "labels": "sports"}]}, "labels must be a list"),
    ],
)
def test_a_file_that_says_nonsense_is_refused(tmp_path, config, named):
    with pytest.raises(OptionError, match=named):
        many_of(tmp_path / "many.yaml", config)


def test_names_that_a_disk_may_fold_are_refused_and_loras_keys_known(tmp_path):
    def said(*adapters):
        path = write(tmp_path / "many.yaml", list(adapters))
        return refused("train", "--config", path, "-o", tmp_path / "made", "--dry-run")

    assert "'x' is used twice" in said({"name": "x"}, {"name": "X"})
    assert "no key 'lora_alfa'; did you mean lora_alpha?" in said(
        {"name": "x", "lora": {"lora_alfa": 3}}
    )


def test_a_dry_run_refuses_the_precision_that_the_training_would(small_folders, tmp_path):
    path = write(tmp_path / "many.yaml", [{"name": "x"}], precision="int3")
    command = ["train", "--config", path, "-o", tmp_path / "made", "-e", small_folders["bert"]]
    assert "precision='int3' is none of" in refused(*command, "--dry-run")


@pytest.mark.parametrize("text", ["a: [1", "- 1", "!!python/object/apply:os.system ['true']"])
def test_what_is_no_mapping_is_refused_and_never_run(tmp_path, text):
    path = tmp_path / "many.yaml"
    path.write_text(text)
    refused("train", "--config", path, "-o", tmp_path / "made")
