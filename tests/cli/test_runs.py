"""`adaptx runs`, on runs that the command itself made."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from adaptx.errors import OptionError, OutputExists
from tests.cli.test_cli import refused, run
from tests.cli.test_commands import inside
from tests.conftest import ROOT, SAMPLE
from tests.test_readme import blocks
from tests.training.test_train import fit


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    """A folder with the two runs that docs/runs.md trains."""
    folder = tmp_path_factory.mktemp("page")
    for name, lr in (("slow", 1e-3), ("fast", 1e-2)):
        fit(small, lr=lr, run=folder / "runs" / name)
    return folder


def test_train_says_where_its_log_is_and_by_default_takes_a_new_folder(
    small_folders, tmp_path, runs_dir
):
    before = set(runs_dir.iterdir())
    done = run(
        "train", "--encoder", small_folders["bert"], "--train", SAMPLE / "train.jsonl",
        "-o", tmp_path / "p", "--name", "sw-probe", "--method", "probe", "--track", "tensorboard",
    )  # fmt: skip
    (made,) = set(runs_dir.iterdir()) - before
    assert re.fullmatch(r"sw-probe-\d{8}-\d{6}", made.name)
    assert f"Its log: {made}." in done.stdout
    assert list((made / "sw-probe").glob("events.out.tfevents.*"))


def test_a_dry_run_and_a_refused_run_make_no_folder(small_folders, tmp_path, runs_dir):
    before = set(runs_dir.iterdir())
    common = ["train", "-e", small_folders["bert"], "--train", SAMPLE / "train.jsonl"]
    run(*common, "-o", tmp_path / "x", "--dry-run")
    with pytest.raises(OptionError, match=r"Unknown tracker tensorbord;.*wandb"):
        inside(*common, "-o", tmp_path / "x", "--track", "tensorbord", "--dry-run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(OutputExists, match="choose another"):
        inside(*common, "-o", tmp_path / "x", "--run", tmp_path / "mine")
    assert set(runs_dir.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_finished_job_that_resumes_is_done_and_one_without_its_adapter_writes_it(
    small_folders, tmp_path, capsys
):
    command = [
        "train", "--encoder", small_folders["bert"], "--train", SAMPLE / "train.jsonl",
        "-o", tmp_path / "x", "--r", "2", "--epochs", "1", "--run", tmp_path / "run", "--resume",
    ]  # fmt: skip
    inside(*command)
    log = (tmp_path / "run" / "log.jsonl").read_bytes()
    weights = (tmp_path / "x" / "adapter_model.safetensors").read_bytes()
    capsys.readouterr()
    inside(*command)
    assert f"done already, and wrote {tmp_path / 'x'}" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "x")
    inside(*command)
    assert (tmp_path / "x" / "adapter_model.safetensors").read_bytes() == weights
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == log
    with pytest.raises(OutputExists, match="exists already"):
        inside(*command[:-3])


def test_the_list_has_each_run_and_a_damaged_one(folder, tmp_path):
    shutil.copytree(folder / "runs", tmp_path / "runs")
    damaged = tmp_path / "runs" / "damaged"
    damaged.mkdir()
    (damaged / "run.json").write_text("{")
    done = run("runs", "list", tmp_path / "runs")
    slow, fast, last = done.stdout.splitlines()[1:]
    assert slow.split()[:3] == ["slow", "done", "lora"]
    assert fast.startswith("fast")
    assert " 2/2 " in fast
    assert last.split()[:2] == ["damaged", "damaged"]
    assert "run.json can't be read as JSON" in done.stderr
    listed = json.loads(run("runs", "list", tmp_path / "runs", "--json").stdout)
    assert [entry["state"] for entry in listed] == ["done", "done", "damaged"]
    assert listed[1]["settings"]["lr"] == 1e-2
    assert listed[1]["folder"] == str(tmp_path / "runs" / "fast")


def test_a_folder_without_runs_says_so(tmp_path):
    assert "no runs" in run("runs", "list", tmp_path).stdout
    assert json.loads(run("runs", "list", tmp_path, "--json").stdout) == []
    assert "no folder" in refused("runs", "list", tmp_path / "absent")


def test_compare_shows_what_differs_and_the_scores(folder):
    both = [folder / "runs" / "slow", folder / "runs" / "fast"]
    found = json.loads(run("runs", "compare", *both, "--json").stdout)
    assert found["differ"] == {"lr": [1e-3, 1e-2]}
    facts = [json.loads((run / "run.json").read_text()) for run in both]
    assert found["scores"]["best accuracy"] == [one["best"]["accuracy"] for one in facts]
    assert all(speed > 0 for speed in found["scores"]["tokens/s"])
    said = run("runs", "compare", *both).stdout
    assert re.search(r"^lr +0\.001 +0\.01$", said, re.M)
    assert re.search(r"^best accuracy +0\.\d+ +0\.\d+$", said, re.M)
    assert "no setting differs" in run("runs", "compare", both[0]).stdout
    assert "twice" in refused("runs", "compare", both[0], both[0])
    assert "has no run.json" in refused("runs", "compare", both[0], folder)


def pixels(path):
    from matplotlib.image import imread

    return imread(path)


def test_plot_draws_each_run_and_replaces_only_when_told(folder, tmp_path):
    both = [folder / "runs" / "slow", folder / "runs" / "fast"]
    run("runs", "plot", both[0], "-o", tmp_path / "one.png")
    run("runs", "plot", *both, "-o", tmp_path / "two.png")
    one, two = pixels(tmp_path / "one.png"), pixels(tmp_path / "two.png")
    assert one.shape == two.shape
    assert min(one.shape[:2]) > 500
    blue, orange = (0, 114, 178), (213, 94, 0)

    def has(image, colour):
        return (abs(image[..., :3] * 255 - colour).max(axis=-1) < 2).sum() > 100

    assert has(one, blue) and not has(one, orange)
    assert has(two, blue) and has(two, orange)
    assert "--overwrite" in refused("runs", "plot", both[0], "-o", tmp_path / "two.png")
    run("runs", "plot", both[0], "-o", tmp_path / "two.png", "--overwrite")
    assert (pixels(tmp_path / "two.png") == one).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_plot_refuses_what_it_cant_draw(folder, tmp_path):
    slow = folder / "runs" / "slow"
    assert ".png, .svg, .pdf" in refused("runs", "plot", slow, "-o", tmp_path / "x.gif")
    assert "no folder" in refused("runs", "plot", slow, "-o", tmp_path / "no" / "x.png")
    said = refused("runs", "plot", slow, "-o", tmp_path / "x.png", "--metric", "f1")
    assert "macro_f1" in said
    empty = tmp_path / "empty"
    shutil.copytree(slow, empty)
    (empty / "log.jsonl").write_text("")
    assert "Nothing is logged" in refused("runs", "plot", empty, "-o", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_a_run_without_dev_has_its_loss_drawn(folder, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(folder / "runs" / "slow", bare)
    entries = [json.loads(line) for line in (bare / "log.jsonl").read_text().splitlines()]
    kept = ("kind", "epoch", "step", "loss", "seconds", "lr", "tokens")
    lines = [json.dumps({k: v for k, v in entry.items() if k in kept}) for entry in entries]
    (bare / "log.jsonl").write_text("\n".join(lines) + "\n")
    run("runs", "plot", bare, "-o", tmp_path / "x.png")
    assert pixels(tmp_path / "x.png").std() > 0
    said = refused("runs", "plot", bare, "-o", tmp_path / "y.png", "--metric", "f1")
    assert said.rstrip().endswith("there is loss.")


def test_the_smoothed_loss_is_the_unbiased_moving_average():
    import numpy as np

    from adaptx.training.curves import smoothed

    values = np.random.default_rng(0).normal(size=40)
    for t in (0, 1, 7, 39):  # the weighted mean of all values so far, written out
        weights = 0.9 ** np.arange(t, -1, -1)
        wanted = (weights * values[: t + 1]).sum() / weights.sum()
        assert smoothed(values)[t] == pytest.approx(wanted)
    assert smoothed([3.0] * 5) == pytest.approx([3.0] * 5)


def test_the_pages_commands_and_its_follower_run(folder, monkeypatch):
    """docs/runs.md, line by line, but for the training: the fixture did that."""
    page = ROOT / "docs" / "runs.md"
    monkeypatch.chdir(folder)
    lines = [line for block in blocks(page) for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("adaptx runs ")]
    assert {line.split()[2] for line in commands} == {"list", "compare", "plot"}
    env = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    for line in commands:
        run(*line.split()[1:], **env)
    assert Path("curves.png").stat().st_size > 10_000
    (code,) = blocks(page, "python")
    shown = []
    exec(compile(code, str(page), "exec"), {"print": lambda *words: shown.append(words)})
    assert len(shown) == 2 + 1
