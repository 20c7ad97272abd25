"""A run's folder: written by real trainings, read back, also when it is damaged or was killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig

import adaptx as ax
from adaptx.data.records import Tagged
from adaptx.errors import FolderError, OptionError, OutputExists
from adaptx.training import runs
from adaptx.training.runlog import RunLog
from tests.conftest import SAMPLE
from tests.training.test_train import Exploding, fit


@pytest.fixture(scope="module")
def trained(small_folders, tmp_path_factory):
    """A run of 2 epochs with tensorboard, and the adapter that came of it."""
    encoder = ax.Encoder.from_pretrained(small_folders["bert"])
    folder = tmp_path_factory.mktemp("runs") / "sw-topics-a"
    adapter = fit(encoder, run=folder, trackers=["tensorboard"], lr=1e-2)
    return adapter, runs.read_run(folder)


def test_a_run_says_what_was_trained_and_how_it_ended(trained):
    adapter, run = trained
    assert (run.state, run.name, run.method, run.epochs) == ("done", "x", "lora", 2)
    assert run.config["r"] == 4
    assert run.config["target_modules"] == "all-linear"
    training = adapter.facts.training
    for name in ("settings", "precision", "processes", "train_rows", "dev_rows", "best"):
        assert getattr(run, name) == training[name]
    assert run.versions["torch"] == sys.modules["torch"].__version__
    assert run.pid == os.getpid()
    assert run.ended >= run.started
    assert sorted(path.name for path in run.folder.iterdir()) == [
        *("checkpoints", "log.jsonl", "run.json", "run.lock", "x")
    ]


def test_the_log_has_every_step_and_the_epochs_of_the_adapter(trained):
    adapter, run = trained
    steps, epochs = runs.read_log(run, "step"), runs.read_log(run, "epoch")
    assert [step["step"] for step in steps] == list(range(1, 23))  # 168 rows, 16 a step
    assert [step["epoch"] for step in steps] == [1] * 11 + [2] * 11
    for entry, logged in zip(adapter.facts.training["history"], epochs, strict=True):
        assert entry.items() <= logged.items()
        own = [step["loss"] for step in steps if step["epoch"] == entry["epoch"]]
        assert sum(own) / len(own) == pytest.approx(entry["loss"])
    assert [logged["step"] for logged in epochs] == [11, 22]
    assert max(step["lr"] for step in steps) == pytest.approx(1e-2)  # the peak of the schedule
    assert steps[0]["lr"] == 0.0
    assert all(step["grad_norm"] > 0 for step in steps)
    assert [step["seconds"] for step in steps] == sorted(step["seconds"] for step in steps)
    assert runs.read_log(run, "end") == [{"kind": "end", "state": "done", "error": None}]


def test_tokens_are_those_of_the_texts_without_padding(trained, small):
    _, run = trained
    rows = [json.loads(line) for line in (SAMPLE / "train.jsonl").read_text().splitlines()]
    wanted = sum(map(len, small.text.ids([row["text"] for row in rows])))
    for epoch in (1, 2):
        steps = [step for step in runs.read_log(run, "step") if step["epoch"] == epoch]
        assert sum(step["tokens"] for step in steps) == wanted


def scalars(folder):
    """What tensorboard itself reads from a folder: {tag: [(step, value)]}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def test_tensorboard_reads_the_losses_and_the_scores_of_the_log(trained):
    _, run = trained
    found = scalars(run.folder / "x")
    for tag, kind, name in (
        ("train/loss", "step", "loss"),
        ("train/lr", "step", "lr"),
        ("dev/accuracy", "epoch", "accuracy"),
        ("dev/loss", "epoch", "dev_loss"),
    ):
        wanted = [(entry["step"], entry[name]) for entry in runs.read_log(run, kind)]
        assert [step for step, _ in found[tag]] == [step for step, _ in wanted]
        assert [v for _, v in found[tag]] == pytest.approx([v for _, v in wanted], rel=1e-6)


def test_an_accelerator_of_ones_own_brings_its_trackers(small, tmp_path):
    accelerator = Accelerator(log_with="tensorboard", project_dir=tmp_path)
    fit(small, accelerator=accelerator, name="one", epochs=1)
    fit(small, accelerator=accelerator, name="two", epochs=1)
    assert len(scalars(tmp_path / "one")["train/loss"]) == 11
    assert len(scalars(tmp_path / "two")["train/loss"]) == 11
    assert accelerator.trackers == []
    accelerator.init_trackers("mine")
    fit(small, accelerator=accelerator, name="three", epochs=1)
    assert len(accelerator.trackers) == 1  # whoever began them ends them
    assert not (tmp_path / "three").exists()
    accelerator.end_training()
    assert len(scalars(tmp_path / "mine")["train/loss"]) == 11


def test_a_probe_has_a_run_of_one_epoch(small, tmp_path):
    fit(small, None, run=tmp_path / "probe")
    run = runs.read_run(tmp_path / "probe")
    assert (run.state, run.method, run.epochs, run.config) == ("done", "probe", 1, {})
    assert run.best["accuracy"] == runs.read_log(run, "epoch")[0]["accuracy"]
    assert run.settings.keys() == {"seed", "max_length", "metric"}


def test_the_settings_of_a_probe_that_is_trained_in_steps_are_kept(small, tmp_path):
    rows = [Tagged(("Samia", "alifika"), ("B-PER", "O")) for _ in range(4)]
    options = {"train": rows, "epochs": 2, "lr": 1e-2, "run": tmp_path / "probe"}
    probe = ax.train(small, ax.tasks.TokenClassification(), None, name="p", **options)
    for said in (runs.read_run(tmp_path / "probe").settings, probe.facts.training["settings"]):
        assert (said["epochs"], said["lr"]) == (2, 1e-2)
    task = ax.tasks.TokenClassification()
    again = ax.train(small, task, None, name="p", resume=True, **options)
    assert torch.equal(again.head.weight, probe.head.weight)


def test_divergence_marks_the_run(small, tmp_path):
    with pytest.raises(ArithmeticError):
        fit(small, run=tmp_path / "run", lr=1e-2, task=Exploding(good=13), epochs=3)
    run = runs.read_run(tmp_path / "run")
    assert (run.state, run.epochs) == ("diverged", 1)
    assert "step 14" in run.error
    assert len(runs.read_log(run, "step")) == 13
    assert runs.read_log(run, "end")[0]["state"] == "diverged"


class Interrupted(ax.tasks.Classification):
    """A task that is interrupted when it is asked for a loss."""

    def fit(self, train, dev=()):
        return Interrupted(super().fit(train, dev).labels)

    def losses(self, logits, targets, smoothing=0.0):
        raise KeyboardInterrupt


def test_an_interrupt_marks_the_run_failed_and_frees_its_lock(small, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(small, run=tmp_path / "run", task=Interrupted())
    run = runs.read_run(tmp_path / "run")
    assert run.state == "failed"
    assert "KeyboardInterrupt" in run.error


def test_without_a_run_nothing_is_written(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(small, train=SAMPLE / "train.jsonl", epochs=1)
    assert list(tmp_path.iterdir()) == []


def test_bad_data_makes_no_run(small, tmp_path):
    with pytest.raises(ValueError, match="qeury"):
        fit(small, LoraConfig(target_modules=["qeury"]), run=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"trackers": ["tensorbord"]}, "tensorbord'?; there is .*tensorboard"),
        ({"trackers": ["clearml"]}, "pip install clearml"),
        ({"trackers": "tensorboard"}, "a list of names"),
        ({"trackers": ["tensorboard"], "run": None}, "run='runs/NAME'"),
    ],
)
def test_bad_trackers_are_named(small, tmp_path, options, named):
    with pytest.raises(OptionError, match=named):
        fit(small, **{"run": tmp_path / "run", **options})
    assert list(tmp_path.iterdir()) == []


def test_trackers_beside_an_accelerator_of_ones_own_are_refused(small, tmp_path):
    with pytest.raises(OptionError, match="log_with"):
        fit(small, run=tmp_path / "r", trackers=["tensorboard"], accelerator=Accelerator())


def test_a_run_is_never_replaced(trained, small):
    _, run = trained
    before = (run.folder / "run.json").read_bytes()
    with pytest.raises(OutputExists, match="choose another"):
        fit(small, run=run.folder)
    assert (run.folder / "run.json").read_bytes() == before


KILLED = """
import sys
import adaptx as ax
from tests.training.test_train import fit

class Killed(ax.tasks.Classification):
    def fit(self, train, dev=()):
        return Killed(super().fit(train, dev).labels)
    def losses(self, logits, targets, smoothing=0.0):
        print("training", flush=True)
        sys.stdin.readline()
        return super().losses(logits, targets, smoothing)

fit(ax.Encoder.from_pretrained(sys.argv[1]), task=Killed(), run=sys.argv[2])
"""


def test_a_run_is_running_until_its_process_is_killed_then_stopped(small_folders, tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(small_folders["bert"]), str(folder)],
        cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout.readline() == "training\n"
        assert runs.read_run(folder).state == "running"
        assert runs.read_run(folder).pid == process.pid
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    assert runs.read_run(folder).state == "stopped"
    assert json.loads((folder / "run.json").read_text())["state"] == "running"


def test_a_last_line_cut_short_is_left_out_and_a_broken_line_before_it_named(trained, tmp_path):
    _, run = trained
    whole = (run.folder / "log.jsonl").read_bytes()
    log = tmp_path / "log.jsonl"
    here = replace(run, folder=tmp_path)
    log.write_bytes(whole[:-20])
    assert runs.read_log(here, "step") == runs.read_log(run, "step")
    assert runs.read_log(here, "end") == []
    log.write_bytes(b'{"kind": \n' + whole)
    with pytest.raises(FolderError, match=r"log\.jsonl, line 1: this isn't JSON"):
        runs.read_log(here, "step")
    log.write_bytes(b"[1]\n" + whole)
    with pytest.raises(FolderError, match="line 1: this isn't a JSON object"):
        runs.read_log(here, "step")


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 10**6))
def test_a_log_cut_anywhere_gives_the_lines_before_the_cut(trained, tmp_path_factory, cut):
    _, run = trained
    whole = (run.folder / "log.jsonl").read_bytes()
    kept = whole[: cut % (len(whole) + 1)]
    folder = tmp_path_factory.mktemp("cut")
    (folder / "log.jsonl").write_bytes(kept)
    steps = runs.read_log(replace(run, folder=folder), "step")
    lines = [json.loads(line) for line in kept.splitlines() if line.endswith(b"}")]
    assert steps == [line for line in lines if line["kind"] == "step"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 9}, "schema 9"),
        ({"kind": "adapter"}, "kind 'adapter'"),
        ({"state": "asleep"}, "state can't be 'asleep'"),
        ({"epochs": "two"}, "epochs can't be 'two'"),
        ({"started": "yesterday"}, "isn't whole"),
        ({"started": None}, "isn't whole"),
        ({"best": [1]}, "best can't be"),
    ],
)
def test_a_damaged_run_is_named(trained, tmp_path, change, said):
    _, run = trained
    value = json.loads((run.folder / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(value | change))
    with pytest.raises(FolderError, match=said):
        runs.read_run(tmp_path)


def test_a_run_without_a_field_or_no_run_at_all_is_named(trained, tmp_path):
    _, run = trained
    value = json.loads((run.folder / "run.json").read_text())
    del value["encoder"]
    (tmp_path / "run.json").write_text(json.dumps(value))
    with pytest.raises(FolderError, match=r"isn't whole \('encoder'\)"):
        runs.read_run(tmp_path)
    with pytest.raises(FolderError, match=r"has no run\.json"):
        runs.read_run(tmp_path / "nothing")


def about(**changes):
    return {
        "name": "x", "encoder": "e", "method": "lora", "task": None, "config": {}, "settings": {},
        "precision": "no", "processes": 1, "train_rows": 1, "dev_rows": 0, **changes,
    }  # fmt: skip


def test_a_log_that_cant_be_written_costs_the_log_not_the_training(tmp_path):
    """/dev/full answers every write as a full disk does."""
    with RunLog(tmp_path / "run", Accelerator(), about()) as log:
        log.file.close()
        log.file = open("/dev/full", "w")  # noqa: SIM115, PTH123
        with pytest.warns(UserWarning, match="can't be written any more.*No space"):
            log.step(1, 1, loss=1.0, lr=1e-3, grad_norm=1.0, tokens=9)
        log.step(2, 1, loss=1.0, lr=1e-3, grad_norm=1.0, tokens=9)
        log.epoch({"epoch": 1, "loss": 1.0, "seconds": 1.0}, best=True)
    assert runs.read_run(tmp_path / "run").state == "stopped"


def test_numbers_that_json_lacks_are_null(tmp_path):
    with RunLog(tmp_path / "run", Accelerator(), about()) as log:
        log.step(1, 1, loss=1.0, lr=1e-3, grad_norm=float("inf"), tokens=9)
    (step,) = runs.read_log(runs.read_run(tmp_path / "run"), "step")
    assert step["grad_norm"] is None


def test_fresh_folders_dont_collide(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPTX_RUNS", str(tmp_path))
    folders = []
    for _ in range(4):
        folders.append(runs.fresh_folder("sw"))
        folders[-1].mkdir()
    assert len(set(folders)) == 4
    assert all(folder.parent == tmp_path for folder in folders)


def test_runs_are_found_below_a_folder_or_in_it(trained, tmp_path):
    _, run = trained
    assert list(runs.find_runs(run.folder.parent)) == [run.folder]
    assert list(runs.find_runs(run.folder)) == [run.folder]
    assert list(runs.find_runs(tmp_path)) == list(runs.find_runs(tmp_path / "no")) == []
    shutil.copytree(run.folder, tmp_path / "job" / "one")  # of many adapters
    assert list(runs.find_runs(tmp_path)) == [tmp_path / "job" / "one"]
