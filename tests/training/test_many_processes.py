"""A job of many adapters in several processes, which divide the adapters or the rows."""

import json
import pickle
import sys
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

import adaptx as ax
from adaptx.errors import (
    DataError,
    FingerprintError,
    MissingExtra,
    OptionError,
    ParityError,
    TrainingDiverged,
    TrainingInterrupted,
)
from adaptx.training.processes import divided
from adaptx.training.runs import read_run
from tests.conftest import ROOT, SAMPLE
from tests.training import test_scaling as scaling
from tests.training.test_many import TRAIN, lora, member

MEMBERS = {
    "plain": {},
    "narrow": {"r": 2, "batch_size": 5, "seed": 3},
    "row by row": {"rows": 20, "batch_size": 1, "epochs": 1},  # one process has none, in each step
    "few rows": {"rows": 50, "epochs": 3, "lr": 1e-3, "metric": "dev_loss", "patience": 1},
    "no dev": {"dev": False, "epochs": 1, "clip": 0.1},
}
MODULE = ["-m", "tests.training.many_ranks"]


ranks = partial(scaling.ranks, module=MODULE)
alone = partial(scaling.alone, module=MODULE)


def same(found, wanted, rel=1e-4):
    assert found["adapters"].keys() == wanted["adapters"].keys()
    for name, mine in found["adapters"].items():
        theirs = wanted["adapters"][name]
        for one, other in zip(mine["history"], theirs["history"], strict=True):
            keys = {"loss", "dev_loss"} & other.keys()
            assert [one[k] for k in keys] == pytest.approx([other[k] for k in keys], rel=rel), name
        assert mine["weights"] == pytest.approx(theirs["weights"], rel=10 * rel, abs=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("divide", ["adapters", "rows"])
def test_two_processes_make_the_adapters_of_one(small_folders, tmp_path, divide):
    options = {"members": MEMBERS, "slots": 3, "runs": str(tmp_path / "runs"), "divide": divide}
    wanted = alone(small_folders["bert"], options | {"runs": None})
    found = ranks(2, small_folders["bert"], tmp_path / "meeting", options)
    first, second = sorted(found, key=lambda one: one["rank"])
    for one in found:
        assert list(one["adapters"]) == list(MEMBERS)
        same(one, wanted)
    assert first["adapters"] == second["adapters"]
    assert sorted(first["saved"] + second["saved"]) == sorted(MEMBERS)  # each once
    if divide == "rows":
        assert first["saved"] and not second["saved"]
    else:
        assert first["saved"] and second["saved"]
    for name in MEMBERS:
        assert read_run(tmp_path / "runs" / name).state == "done"
        assert first["adapters"][name]["processes"] == (2 if divide == "rows" else 1)


@pytest.mark.slow
def test_another_family_divides_rows_through_the_bank(small_folders, tmp_path):
    options = {"members": {"a": {}, "b": {"batch_size": 1, "rows": 20}}, "divide": "rows"}
    wanted = alone(small_folders["distilbert"], options)
    for one in ranks(2, small_folders["distilbert"], tmp_path / "meeting", options):
        same(one, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("divide", ["adapters", "rows"])
def test_one_that_fails_leaves_the_others_in_every_process(small_folders, tmp_path, divide):
    """One diverges in its first epoch, one late; where rows are divided, the run of another can't
    be written, which the first process alone sees.
    """
    members = {
        "first": {"epochs": 1},
        "bad": {"lr": 1e28, "clip": 0.0},
        "late": {"lr": 1e28, "clip": 0.0, "warmup": 0.5, "epochs": 4, "batch_size": 168},
        "good": {},
        "also": {"rows": 30},
    }
    failing = ["bad", "late"]
    if divide == "rows":
        members["nowhere"] = {"rows": 30, "epochs": 1}
        failing.append("nowhere")
    options = {
        "members": members, "slots": 2, "runs": str(tmp_path / "runs"), "divide": divide,
        "taken": "nowhere" if divide == "rows" else None,
    }  # fmt: skip
    found = ranks(2, small_folders["bert"], tmp_path / "meeting", options)
    assert len(found) == 2
    for one in found:
        assert list(one["failed"]) == failing, one["failed"]
        assert list(one["adapters"]) == ["first", "good", "also"]
        assert one["kept"] == ["late"]
        assert "TrainingDiverged: Training diverged at step" in one["failed"]["bad"]
        assert one["failed"].get("nowhere", "FolderError").startswith("FolderError")
    assert found[0]["adapters"] == found[1]["adapters"]


@pytest.mark.slow
@pytest.mark.parametrize("divide", ["adapters", "rows"])
def test_a_signal_to_one_process_stops_all_and_the_job_goes_on(small_folders, tmp_path, divide):
    """The last process is signalled; where each trains its own, the other ends its share, and says
    what became of the last one.
    """
    folder, runs = small_folders["bert"], tmp_path / "runs"
    members = {"a": {}, "b": {"seed": 1}, "c": {"epochs": 3, "rows": 100}, "d": {"rows": 60}}
    options = {"members": members, "slots": 2, "divide": divide, "runs": str(runs)}
    wanted = ranks(2, folder, tmp_path / "m1", options | {"runs": str(tmp_path / "whole")})
    cut = ranks(2, folder, tmp_path / "m2", options | {"signal_at": 20})
    stopped = "TrainingInterrupted: SIGTERM ended the training of"
    said = sorted(one["error"] for one in cut)
    assert said[1].startswith(stopped), said
    assert said[0].startswith(stopped if divide == "rows" else "AdaptxError: Another process")
    states = {name: read_run(runs / name).state for name in members if (runs / name).exists()}
    assert "interrupted" in states.values()
    found = ranks(2, folder, tmp_path / "m3", options | {"resume": True})
    for one in found:
        for name, adapter in one["adapters"].items():
            theirs = wanted[0]["adapters"][name]
            losses = [[e["loss"] for e in its["history"]] for its in (adapter, theirs)]
            assert losses[0] == losses[1] and adapter["weights"] == theirs["weights"], name
        assert list(one["adapters"]) == list(members)


@pytest.mark.slow
def test_adapters_may_go_on_in_another_number_of_processes(small_folders, tmp_path):
    """Each trains in one process, whichever that is."""
    folder, runs = small_folders["bert"], tmp_path / "runs"
    options = {"members": {"a": {}, "b": {"seed": 1}, "c": {"rows": 60}}, "runs": str(runs)}
    wanted = alone(folder, options | {"runs": None})
    ranks(2, folder, tmp_path / "m1", options | {"signal_at": 8})
    found = alone(folder, options | {"resume": True})
    same(found, wanted)


@pytest.mark.slow
def test_a_search_divides_its_trials(small_folders, tmp_path):
    options = {"tune": {"lrs": [1e-3, 3e-3, 1e-2], "settings": {"epochs": 2}}}
    wanted = alone(small_folders["bert"], options)
    found = ranks(2, small_folders["bert"], tmp_path / "meeting", options)
    assert len(found) == 2
    for one in found:
        same(one, wanted)
        assert len(one["trials"]) == 5
        for mine, theirs in zip(one["trials"], wanted["trials"], strict=True):
            assert mine[:2] == theirs[:2] and mine[2] == pytest.approx(theirs[2], rel=1e-3)
    assert found[0]["trials"] == found[1]["trials"]


@pytest.mark.slow
@pytest.mark.parametrize("divide", ["adapters", "rows"])
def test_processes_that_share_no_disk_are_told_so(small_folders, tmp_path, divide):
    """The first one's runs are there, and in another folder, where the other one stands, aren't."""
    folder, here = str(small_folders["bert"]), {"first": str(tmp_path), "last": str(tmp_path)}
    (tmp_path / "elsewhere").mkdir()
    options = {"members": {"a": {}, "b": {"seed": 1}}, "runs": "runs", "divide": divide}
    cut = ranks(2, folder, tmp_path / "m1", options | {"signal_at": 8, "stand": here})
    assert all("error" in one for one in cut) and (tmp_path / "runs").is_dir()
    there = here | {"last": str(tmp_path / "elsewhere")}
    found = ranks(2, folder, tmp_path / "m2", options | {"stand": there, "resume": True})
    assert len(found) == 2 and all("put --run on a shared disk" in one["error"] for one in found)


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 8))
def test_each_place_is_one_processes_and_none_waits_long(costs, processes):
    """The longest share has at most one cost more than the shortest."""
    found = divided(costs, processes)
    assert len(found) == processes
    assert sorted(place for its in found for place in its) == list(range(len(costs)))
    loads = [sum(costs[place] for place in its) for its in found]
    assert max(loads) - min(loads) <= max(costs, default=0)


def test_a_division_that_isnt_there_is_named(small):
    with pytest.raises(OptionError, match="divide='tasks' is none of adapters, rows"):
        ax.train_many(small, [member("x")], divide="tasks")


@pytest.mark.slow
def test_the_command_in_two_processes_says_once_what_it_would_do_and_does_it(
    small_folders, tmp_path
):
    train = str(SAMPLE / "train.jsonl")
    (tmp_path / "many.json").write_text(
        json.dumps(
            {
                "encoder": str(small_folders["bert"]),
                "divide": "rows",
                "defaults": {"epochs": 1, "lora": {"r": 2}},
                "adapters": [{"name": "a", "train": train}, {"name": "b", "train": train}],
            }
        )
    )
    config = ROOT / "recipes" / "accelerate" / "cpu.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
    launch += ["--num_processes", "2", "--mixed_precision", "no", "-m", "adaptx", "train"]
    launch += ["--config", tmp_path / "many.json", "-o", tmp_path / "made"]
    said, err = scaling.run([*launch, "--dry-run"]).communicate(timeout=300)
    assert said.count("Would train 2 adapters") == 1, err
    process = scaling.run([*launch, "--run", tmp_path / "runs"])
    said, err = process.communicate(timeout=300)
    assert process.returncode == 0 and said.count("Wrote 2 adapters") == 1, err
    assert {path.name for path in (tmp_path / "made").iterdir()} == {"a", "b"}
    assert [read_run(tmp_path / "runs" / name).processes for name in "ab"] == [2, 2]


@pytest.mark.slow
def test_fsdp_is_refused(small_folders, tmp_path):
    options = {"members": {"a": {}, "b": {}}}
    found = ranks(2, small_folders["bert"], tmp_path / "meeting", options, **scaling.FSDP)
    assert len(found) == 2
    assert all("FSDP divides the encoder for one adapter" in one["error"] for one in found)


def test_one_process_has_nothing_to_divide(small):
    made = [ax.train_many(small, [member("x", lora(2), TRAIN[:40], epochs=1)], divide=d)
            for d in ("adapters", "rows")]  # fmt: skip
    one, other = (found.adapters["x"].weights() for found in made)
    assert all((weight == other[name]).all() for name, weight in one.items())


@pytest.mark.parametrize(
    "error",
    [
        DataError("no text", "x.tsv", 3),
        FingerprintError("x", "one", "1", "other", "2"),
        MissingExtra("optimum", "export", "This"),
        TrainingDiverged("at step 3", 3, adapter={"kept": True}),
        TrainingInterrupted(15, 3, "runs/x", ["a", "b"]),
        ParityError("too far", {"x": 1.0}),
    ],
)
def test_an_error_reaches_another_process_as_it_was(error):
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error) and str(found) == str(error)
    assert vars(found) == vars(error)
