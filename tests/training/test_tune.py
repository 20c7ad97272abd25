"""The search: its rungs, what it keeps, what it reports; `adaptx tune` as users run it."""

import json

import pytest
from peft import LoraConfig

import adaptx as ax
from adaptx.data.read import read_examples
from adaptx.errors import OptionError, SiteError, TrainingDiverged
from adaptx.training.runs import find_runs
from adaptx.training.tune import rungs
from tests.cli.test_cli import refused, run
from tests.conftest import SAMPLE
from tests.training.test_many import signal_at
from tests.training.test_train import Exploding

FILES = {"train": SAMPLE / "train.jsonl", "dev": SAMPLE / "dev.jsonl"}


@pytest.mark.parametrize(
    ("trials", "epochs", "plan"),
    [
        (1, 10, [(1, 10)]),
        (2, 10, [(2, 10)]),
        (3, 10, [(3, 5), (2, 10)]),
        (8, 8, [(8, 2), (4, 4), (2, 8)]),
        (20, 1, [(20, 1), (10, 1), (5, 1), (3, 1), (2, 1)]),
    ],
)
def test_each_rung_has_half_the_trials_and_twice_the_epochs(trials, epochs, plan):
    assert rungs(trials, epochs) == plan


def search(encoder, **options):
    task = options.pop("task", ax.tasks.Classification())
    defaults = {"lrs": [1e-5, 1e-2, 1e28], "ranks": [2], "settings": {"epochs": 4, "clip": 0.0}}
    return ax.tune(
        encoder, task, LoraConfig(r=4, target_modules="all-linear"),
        name="best", **FILES, **(defaults | options),
    )  # fmt: skip


def test_the_better_ones_go_on_and_the_best_is_kept(small, tmp_path):
    found = search(small)
    assert [(t.rung, t.epochs) for t in found.trials] == [(1, 2)] * 3 + [(2, 4)] * 2
    first, last = found.trials[:3], found.trials[3:]
    assert {t.lr for t in last} == {t.lr for t in first[:2]} == {1e-5, 1e-2}  # the third diverged
    assert first[2].lr == 1e28 and first[2].scores is None
    assert last[0].scores["accuracy"] >= last[1].scores["accuracy"]
    adapter = found.adapter
    assert adapter.name == "best" and adapter.facts.training["settings"]["lr"] == last[0].lr
    scores = ax.evaluate(small, adapter, read_examples(FILES["dev"])).scores
    assert scores["accuracy"] == pytest.approx(last[0].scores["accuracy"])
    adapter.save(tmp_path / "best")
    kept = ax.Adapter.load(tmp_path / "best", small).facts.training["search"]
    assert len(kept) == 5 and kept[2]["scores"] is None


def test_ranks_and_sites_are_searched_at_one_scale(small):
    found = search(small, lrs=[1e-3], ranks=[2, 8], sites=["all-linear", ["query"]])
    assert {(t.r, str(t.sites)) for t in found.trials[:4]} == {
        (r, s) for r in (2, 8) for s in ("all-linear", "['query']")
    }
    scales = {site.scale for site in found.adapter.sites.values()}
    assert scales == {2.0}  # PEFT's alpha 8 at r=4


def test_where_all_diverge_the_reason_is_said(small):
    with pytest.raises(TrainingDiverged, match="rows"):
        search(small, lrs=[1e28, 2e28])


def test_where_all_of_a_later_rung_diverge_the_best_of_the_one_before_is_kept(small):
    task = Exploding(good=22)  # 2 epochs
    found = search(small, task=task, lrs=[1e-3, 1e-2, 3e-2])
    assert [(t.rung, t.scores is None) for t in found.trials] == [(1, False)] * 3 + [(2, True)] * 2
    best, training = found.trials[0], found.adapter.facts.training
    assert found.adapter.name == "best" and len(training["search"]) == 5
    assert (training["settings"]["lr"], len(training["history"])) == (best.lr, 2)
    assert training["best"]["accuracy"] == best.scores["accuracy"]


def test_nothing_to_search_is_refused(small):
    with pytest.raises(OptionError, match="lrs="):
        search(small, lrs=[])
    with pytest.raises(OptionError, match="rank 0 must be at least 1"):
        search(small, ranks=[0, 8])
    with pytest.raises(OptionError, match=r"lrs: 0\.001 is there twice"):
        search(small, lrs=[1e-3, 1e-3])
    with pytest.raises(SiteError, match="qeury"):
        search(small, sites=["all-linear", ["qeury"]])
    with pytest.raises(OptionError, match="lr=-1"):
        search(small, lrs=[1e-3, -1])


def test_the_command_shows_every_trial_and_saves_the_best(small_folders, tmp_path):
    command = [
        "tune", "--train", FILES["train"], "--dev", FILES["dev"], "-o", tmp_path / "best",
        "-e", small_folders["bert"], "--lr", "1e-3,1e-2,3e-2", "--r", "2", "--epochs", "2",
    ]  # fmt: skip
    assert "Would train 3 for 1 epochs, then 2 for 2 epochs: 77 steps" in run(
        *command, "--dry-run"
    ).stdout.replace("\n", " ")
    trials = json.loads(run(*command, "--json").stdout)
    assert [trial["rung"] for trial in trials] == [1, 1, 1, 2, 2]
    assert (tmp_path / "best" / "adaptx.json").is_file()
    shown = run(*command, "--overwrite").stdout
    assert "rung" in shown and shown.count("all-linear") == 5 and "Wrote" in shown
    assert "exists already" in refused(*command)
    assert "--lr 'a'" in refused(*command[:-6], "--lr", "a")


def test_a_search_that_was_cut_off_goes_on_to_the_same_adapter(small_folders, tmp_path):
    command = [
        "tune", "--train", FILES["train"], "--dev", FILES["dev"], "-o", tmp_path / "best",
        "-e", small_folders["bert"], "--lr", "1e-3,1e-2,3e-2", "--r", "2", "--epochs", "2",
    ]  # fmt: skip
    whole = run(*command, "--run", tmp_path / "whole")
    assert f"The trials' logs: {tmp_path / 'whole'}." in whole.stdout
    (tmp_path / "best").rename(tmp_path / "wanted")
    runs = tmp_path / "cut"
    with signal_at(50):  # of 33 steps, then 44
        cut = run(*command, "--run", runs, code=143)
    assert "ended the training of best-2-1, best-2-2" in cut.stderr
    assert f"--run {runs} --resume" in cut.stderr
    assert "has a run already, which is done" in refused(*command, "--run", runs)
    assert "--resume needs --run" in refused(*command, "--resume")
    run(*command, "--run", runs, "--resume")
    names = [f"best-{rung}-{number}" for rung, number in ((1, 1), (1, 2), (1, 3), (2, 1), (2, 2))]
    assert [path.name for path in find_runs(tmp_path) if path.parent == runs] == names
    weights = [tmp_path / made / "adapter_model.safetensors" for made in ("best", "wanted")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--r", "0,8", "rank 0"),
        ("--sites", "qeury", "matches no site"),
        ("--slots", "0", "--slots 0"),
        ("--lr", "1e-3,-1", "lr=-1.0"),
    ],
)
def test_a_dry_run_refuses_what_the_search_would(small_folders, tmp_path, option, value, named):
    assert named in refused(
        "tune", "--train", FILES["train"], "--dev", FILES["dev"], "-o", tmp_path / "made",
        "-e", small_folders["bert"], "--dry-run", option, value,
    )  # fmt: skip
