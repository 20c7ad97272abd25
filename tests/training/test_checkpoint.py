"""A run that is cut off goes on to the same weights; a checkpoint is whole or not there."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

import adaptx as ax
from adaptx.adapters.own_model import Full
from adaptx.data.records import Tagged
from adaptx.errors import FolderError, OptionError, TrainingDiverged, TrainingInterrupted
from adaptx.training import resuming, scoring
from adaptx.training.checkpoint import newest_checkpoint, write_checkpoint
from adaptx.training.plan import Plan
from adaptx.training.resuming import Resuming
from adaptx.training.runs import read_log, read_run
from adaptx.training.stopping import Stopping
from tests.conftest import SAMPLE
from tests.training.test_scaling import ranks
from tests.training.test_train import LORA, fit

CHILD = Path(__file__).parent / "cut_off.py"
OPTIONS = {"epochs": 3, "lr": 3e-3, "seed": 4}


def weights(adapter):
    return adapter.weights()


def same(one, two):
    assert one.keys() == two.keys()
    return all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def interrupt(encoder, run, at, config=LORA, number=signal.SIGTERM, times=1, **options):
    """Train until the signal comes in optimizer step `at`, so many times."""

    def steps(self, epoch):
        for step in original(self, epoch):
            begun.append(step)
            for _ in range(times if len(begun) == at else 0):
                os.kill(os.getpid(), number)
            yield step

    begun, original = [], Plan.steps
    with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingInterrupted) as caught:
        patch.setattr(Plan, "steps", steps)
        fit(encoder, config, run=run, **(OPTIONS | options))
    assert caught.value.signal == number and caught.value.step == at
    return caught.value


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (LORA, {}),
        (LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.3), {}),  # draws
        (LoraConfig(r=4, target_modules="all-linear", use_dora=True), {}),
        (Full(0.1), {"lr": 1e-4}),
        (LORA, {"probe_first": True, "accumulate": 3, "patience": 2}),
    ],
    ids=["lora", "dropout", "dora", "full", "probe first"],
)
def test_an_interrupted_run_ends_in_the_same_weights(small, tmp_path, config, options):
    whole = fit(small, config, run=tmp_path / "whole", **(OPTIONS | options))
    interrupt(small, tmp_path / "cut", 15, config, **options)
    assert read_run(tmp_path / "cut").state == "interrupted"
    cut = fit(small, config, run=tmp_path / "cut", resume=True, **(OPTIONS | options))
    assert same(weights(cut), weights(whole))
    logs = [read_run(tmp_path / name) for name in ("whole", "cut")]
    assert {log.state for log in logs} == {"done"}
    steps = [
        [(e["step"], e["epoch"], e["loss"], e["lr"]) for e in read_log(log, "step")] for log in logs
    ]
    assert steps[0] == steps[1] and len(steps[0]) == 33
    epochs = [
        [(e["epoch"], e["loss"], e["dev_loss"], e["best"]) for e in read_log(log, "epoch")]
        for log in logs
    ]
    assert epochs[0] == epochs[1]


@pytest.mark.parametrize("at", [1, 11, 12, 33])
def test_any_step_may_be_the_last_one(small, tmp_path, at):
    whole = fit(small, **OPTIONS)
    interrupt(small, tmp_path / "cut", at, number=signal.SIGINT)
    cut = fit(small, run=tmp_path / "cut", resume=True, **OPTIONS)
    assert same(weights(cut), weights(whole))


def test_the_seconds_before_it_was_cut_off_count(small, tmp_path):
    interrupt(small, tmp_path, 15)
    found = newest_checkpoint(tmp_path)
    assert found.state["seconds"] > 0
    write_checkpoint(tmp_path, found.step, {**found.state, "seconds": 1e4}, found.tensors)
    adapter = fit(small, run=tmp_path, resume=True, **OPTIONS)
    assert adapter.facts.training["seconds"] > 1e4


def test_sigterms_after_the_first_one_leave_the_checkpoint_its_time(small, tmp_path):
    """A launcher passes its own on, and each process may get it twice."""
    interrupt(small, tmp_path / "cut", 15, times=3)
    assert read_run(tmp_path / "cut").state == "interrupted"
    assert newest_checkpoint(tmp_path / "cut").step == 15


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("repeated", [False, True], ids=["", "torchrun"])
def test_a_sigint_after_a_signal_ends_the_process(monkeypatch, first, repeated):
    if repeated:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    # As in a terminal: what a shell starts in its background ignores SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Stopping(True) as stopping:
            os.kill(os.getpid(), first)
            if repeated:  # what a terminal sends to all its processes, the launcher sends again
                os.kill(os.getpid(), signal.SIGINT)
            assert stopping.signal == first
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_in_an_evaluation_waits_for_a_batch_alone(small, tmp_path, monkeypatch):
    """The epoch isn't scored; when the run goes on, it is."""

    def unpadded(*given):
        scored.append(given)
        if len(scored) == 5:  # the first of the third epoch's two batches
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*given)

    scored, original = [], scoring.unpadded
    whole = fit(small, **OPTIONS)
    with monkeypatch.context() as patch, pytest.raises(TrainingInterrupted, match="step 33"):
        patch.setattr(scoring, "unpadded", unpadded)
        fit(small, run=tmp_path / "cut", **OPTIONS)
    assert len(scored) == 5
    assert [e["epoch"] for e in read_log(read_run(tmp_path / "cut"), "epoch")] == [1, 2]
    cut = fit(small, run=tmp_path / "cut", resume=True, **OPTIONS)
    assert same(weights(cut), weights(whole))
    assert [e["epoch"] for e in read_log(read_run(tmp_path / "cut"), "epoch")] == [1, 2, 3]


@pytest.mark.parametrize("options", [{}, {"patience": 1, "lr": 0.1, "epochs": 30}])
def test_a_finished_run_gives_its_adapter_without_a_step(small, tmp_path, monkeypatch, options):
    """As after a disk that had no room for the adapter."""
    whole = fit(small, run=tmp_path / "done", **(OPTIONS | options))
    log = (tmp_path / "done" / "log.jsonl").read_text().splitlines()
    assert len(whole.facts.training["history"]) < 30
    monkeypatch.setattr(Plan, "steps", lambda self, epoch: pytest.fail("a step"))
    again = fit(small, run=tmp_path / "done", resume=True, **(OPTIONS | options))
    assert same(weights(again), weights(whole))
    assert again.facts.training["history"] == whole.facts.training["history"]
    assert again.facts.training["best"] == whole.facts.training["best"]
    assert (tmp_path / "done" / "log.jsonl").read_text().splitlines() == log


def test_a_run_without_room_for_its_last_checkpoint_isnt_done(small, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12 << 10, before[1]))
    try:
        with pytest.raises(FolderError, match="is the disk full"):
            fit(small, run=tmp_path / "run", epochs=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_run(tmp_path / "run").state == "failed"


def test_a_run_that_isnt_there_begins(small, tmp_path):
    begun = fit(small, run=tmp_path / "new", resume=True, **OPTIONS)
    assert same(weights(begun), weights(fit(small, **OPTIONS)))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"lr": 1e-4}, "lr was 0.003 and is 0.0001"),
        ({"seed": 5}, "seed was 4 and is 5"),
        ({"train": SAMPLE / "dev.jsonl"}, "the training data was '168 rows"),
        ({"dev": SAMPLE / "train.jsonl"}, "the dev data was"),
        ({"config": LoraConfig(r=8, target_modules="all-linear")}, "its configuration was"),
        ({"precision": "bf16"}, "precision was 'no' and is 'bf16'"),
    ],
)
def test_another_training_is_refused_by_what_differs(small, cut_run, tmp_path, changed, named):
    run = shutil.copytree(cut_run, tmp_path / "cut")
    before = (run / "log.jsonl").read_bytes()
    with pytest.raises(OptionError, match="is of another training") as caught:
        fit(small, run=run, resume=True, **(OPTIONS | changed))
    assert named in str(caught.value)
    assert (run / "log.jsonl").read_bytes() == before


def test_another_encoder_is_refused(small_folders, cut_run, tmp_path):
    run = shutil.copytree(cut_run, tmp_path / "cut")
    other = ax.Encoder.from_pretrained(small_folders["roberta"])
    with pytest.raises(OptionError, match="the encoder was 'sha256"):
        fit(other, run=run, resume=True, **OPTIONS)


@pytest.fixture(scope="module")
def cut_run(small, tmp_path_factory):
    """A run that was interrupted in step 15, with checkpoints of the steps 14 and 15."""
    run = tmp_path_factory.mktemp("runs") / "cut"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Resuming, "due", property(lambda self: True))  # one after each step
        interrupt(small, run, 15)
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == [
        "step-00000014",
        "step-00000015",
    ]
    return run


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "tensors.safetensors").write_bytes(b"x" * 100),
        lambda folder: (folder / "tensors.safetensors").unlink(),
        lambda folder: (folder / "adaptx.json").write_text("{"),
        lambda folder: (folder / "adaptx.json").write_text('{"schema": 1, "kind": "adapter"}'),
        lambda folder: shutil.rmtree(folder) or folder.mkdir(),
    ],
    ids=["other bytes", "no tensors", "no JSON", "another kind", "empty"],
)
def test_a_damaged_checkpoint_is_passed_over(small, cut_run, tmp_path, damage):
    run = shutil.copytree(cut_run, tmp_path / "cut")
    damage(run / "checkpoints" / "step-00000015")
    (run / "checkpoints" / "step-99999999x").mkdir()  # somebody else's
    used = "step-00000014 is used.*step-00000015 is no whole checkpoint"
    with pytest.warns(UserWarning, match=used):
        resumed = fit(small, run=run, resume=True, **OPTIONS)
    assert same(weights(resumed), weights(fit(small, **OPTIONS)))


def test_a_run_without_a_whole_checkpoint_says_how_to_begin_anew(small, cut_run, tmp_path):
    run = shutil.copytree(cut_run, tmp_path / "cut")
    for folder in (run / "checkpoints").iterdir():
        (folder / "tensors.safetensors").write_bytes(b"x")
    with pytest.raises(FolderError, match=r"No checkpoint .*begin .* anew, delete .*checkpoints"):
        fit(small, run=run, resume=True, **OPTIONS)
    assert [e["step"] for e in read_log(read_run(run), "step")][-1] == 15
    shutil.rmtree(run / "checkpoints")
    begun = fit(small, run=run, resume=True, **(OPTIONS | {"epochs": 1}))
    assert len(begun.facts.training["history"]) == 1


def test_what_isnt_a_checkpoint_is_moved_out_of_ones_place(tmp_path):
    foreign = [tmp_path / "checkpoints" / f"step-{step:08d}" for step in (2, 5)]
    for folder in foreign:
        folder.mkdir(parents=True)
        (folder / "notes.txt").write_text("mine")
    assert newest_checkpoint(tmp_path) is None
    for step in (3, 4):
        write_checkpoint(tmp_path, step, {}, {"x": torch.zeros(1)})
    with pytest.warns(UserWarning, match=r"step-00000005 was moved to step-00000005.aside-1"):
        write_checkpoint(tmp_path, 5, {}, {"x": torch.zeros(1)})
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [
        "step-00000002", "step-00000004", "step-00000005", "step-00000005.aside-1",
    ]  # fmt: skip
    assert (foreign[0] / "notes.txt").read_text() == "mine"
    assert (foreign[1].with_name(names[3]) / "notes.txt").read_text() == "mine"
    assert newest_checkpoint(tmp_path).step == 5


@pytest.mark.parametrize(
    ("damage", "warned"),
    [
        (lambda run: (run / "run.json").write_bytes(b""), "run.json can't be read"),
        (lambda run: (run / "run.json").unlink(), "run.json can't be read"),
        (lambda run: [(run / name).unlink() for name in ("run.json", "log.jsonl")], None),
        (lambda run: damage_line(run, b"\0\0\0\n"), "line 5: this isn't JSON .* is left out"),
        (lambda run: damage_line(run, b'{"kind": "step"}\n'), None),
    ],
    ids=["empty run.json", "no run.json", "checkpoints alone", "damaged line", "another line"],
)
def test_a_runs_facts_and_log_are_made_anew(small, cut_run, tmp_path, damage, warned):
    run = shutil.copytree(cut_run, tmp_path / "cut")
    before = read_run(run)
    damage(run)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(small, run=run, resume=True, **OPTIONS)
    found = [str(one.message) for one in said if str(run) in str(one.message)]
    assert len(found) == bool(warned) and all(re.search(warned, one) for one in found)
    log, after = read_log(read_run(run), "step"), read_run(run)
    assert [e["step"] for e in log][-18:] == [*range(16, 34)]
    assert after.state == "done" and after.best.keys() == before.best.keys()


def test_the_best_epoch_comes_from_the_checkpoint_where_the_log_is_lost(small, tmp_path):
    """No epoch after the cut is better, so that none of the new log's is the best."""
    options = OPTIONS | {"probe_first": True}
    run = tmp_path / "cut"
    interrupt(small, run, 15, **options)
    before = read_run(run).best
    for name in ("run.json", "log.jsonl"):
        (run / name).unlink()
    adapter = fit(small, run=run, resume=True, **options)
    assert adapter.facts.training["best"]["epoch"] == before["epoch"] == 1
    assert read_run(run).best == before


def damage_line(run, line):
    lines = (run / "log.jsonl").read_bytes().splitlines(keepends=True)
    (run / "log.jsonl").write_bytes(b"".join([*lines[:4], line, *lines[5:]]))


def test_a_run_that_was_killed_at_its_beginning_begins(small, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.lock").touch()
    fit(small, run=tmp_path / "run", resume=True, epochs=1)
    assert read_run(tmp_path / "run").state == "done"


def test_somebody_elses_run_json_stays(small, tmp_path):
    (tmp_path / "run.json").write_text('{"mine": 1}')
    with pytest.raises(FolderError, match="was the folder written by `adaptx train`"):
        fit(small, run=tmp_path, resume=True, epochs=1)
    assert (tmp_path / "run.json").read_text() == '{"mine": 1}'


def test_the_random_state_of_a_gpu_may_be_missing():
    state = {"cpu": torch.get_rng_state()}
    with pytest.warns(UserWarning, match="begun without a GPU"):
        resuming._set_random_state(state, torch.device("cuda"))


def test_older_ones_go_only_after_a_newer_is_whole(tmp_path, monkeypatch):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step, {"n": step}, {"x": torch.tensor([float(step)])})
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000003"]
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
    script = (
        f"{limit}\nimport signal, torch\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from pathlib import Path\nfrom adaptx.training.checkpoint import write_checkpoint\n"
        f"write_checkpoint(Path({str(tmp_path)!r}), 4, {{}}, {{'x': torch.zeros(10_000)}})"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "FolderError" in found.stderr and "is the disk full?" in found.stderr
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == names
    newest = newest_checkpoint(tmp_path)
    assert newest.step == 3 and newest.state == {"n": 3} and newest.tensors["x"].item() == 3


def test_a_run_under_way_isnt_resumed(small, cut_run, tmp_path):
    from filelock import FileLock

    run = shutil.copytree(cut_run, tmp_path / "cut")
    with FileLock(run / "run.lock"), pytest.raises(FolderError, match="by another process"):
        fit(small, run=run, resume=True, **OPTIONS)


def test_signals_are_the_users_own_again_afterwards(small, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    interrupt(small, tmp_path / "cut", 2)
    fit(small, run=tmp_path / "other", epochs=1)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_divergence_names_the_batchs_rows(small):
    with pytest.raises(TrainingDiverged, match=r"step \d+ \(epoch \d+, rows \d+, \d+"):
        fit(small, lr=1e28, clip=0.0, epochs=2)
    tagged = [Tagged(tuple("abcdefghij" * 6), ("X", "Y") * 30)] * 3  # several windows each
    with pytest.raises(TrainingDiverged, match=r"\(epoch 1, rows [123](, [123])*\): "):
        fit(
            small, task=ax.tasks.TokenClassification(scheme="plain"), train=tagged, dev=None,
            max_length=24, batch_size=6, lr=1e28, clip=0.0, epochs=1,
        )  # fmt: skip


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_seconds_between_checkpoints_are_a_number(small, seconds):
    with pytest.raises(OptionError, match="checkpoint_every"):
        fit(small, checkpoint_every=seconds)


def test_resume_needs_a_run(small):
    with pytest.raises(OptionError, match="Which run"):
        fit(small, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_ends_with_the_signals_code_and_goes_on(small_folders, tmp_path, number, code):
    command = [
        sys.executable, "-m", "adaptx", "train", "--encoder", str(small_folders["bert"]),
        "--train", str(SAMPLE / "train.jsonl"), "--dev", str(SAMPLE / "dev.jsonl"),
        "-o", str(tmp_path / "made"), "--r", "4", "--epochs", "40", "--run", str(tmp_path / "run"),
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("epoch   2"):
                process.send_signal(number)
                break
        said = process.stderr.read()
    assert process.returncode == code and "--resume" in said
    assert read_run(tmp_path / "run").state == "interrupted"
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert again.returncode == 0 and "Going on after step" in again.stderr
    assert (tmp_path / "made" / "adaptx.json").is_file()


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on_to_the_same_losses(small_folders, tmp_path):
    folder, run = str(small_folders["bert"]), str(tmp_path / "run")
    whole = ranks(2, folder, str(tmp_path / "first"), {"run": str(tmp_path / "whole")})
    cut = ranks(2, folder, str(tmp_path / "second"), {"run": run, "signal_at": 23})
    for rank in cut:  # the signal came to one of them
        assert rank["error"].startswith("TrainingInterrupted: SIGTERM ended the training after ")
        assert "step 23," in rank["error"]
    assert read_run(run).state == "interrupted"
    resumed = ranks(2, folder, str(tmp_path / "third"), {"run": run, "resume": True})
    for rank, wanted in zip(resumed, whole, strict=True):
        assert rank["processes"] == 2
        assert rank["weights"] == wanted["weights"]
        assert [e["loss"] for e in rank["history"]] == [e["loss"] for e in wanted["history"]]


@pytest.mark.slow
def test_processes_that_find_different_checkpoints_are_refused(small_folders, tmp_path):
    """As on two machines without a shared disk, where the first alone has the run."""
    write_checkpoint(tmp_path / "run0", 5, {}, {"x": torch.zeros(1)})
    options = {"run": str(tmp_path / "runRANK"), "resume": True}
    for rank in ranks(2, str(small_folders["bert"]), str(tmp_path / "meeting"), options):
        assert rank["error"].startswith("OptionError: The processes find different checkpoints")
        assert "(after step: 5, none)" in rank["error"]


@pytest.mark.slow
def test_no_kill_loses_a_checkpoint(small_folders, tmp_path):
    """SIGKILL at each of the first calls that write, and at random ones: 30 times."""
    draw = random.Random(0)
    lives = [[str(tmp_path / "whole"), None]]
    for attempt in range(5):
        run = str(tmp_path / f"run{attempt}")
        places = range(attempt * 6, attempt * 6 + 6)
        lives += [[run, place if attempt < 3 else draw.randrange(60)] for place in places]
        lives.append([run, None])
    found = subprocess.run(
        [sys.executable, str(CHILD), str(small_folders["bert"]), json.dumps(lives)],
        capture_output=True,
        text=True,
        cwd=CHILD.parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert found.returncode == 0, found.stderr[-2000:]
    whole, *said = [json.loads(line) for line in found.stdout.splitlines()]
    assert len(said) == 35 and [life["signal"] for life in said].count(signal.SIGKILL) == 30
    newest = {}  # by run: what was committed stays
    for (run, kill), life in zip(lives[1:], said, strict=True):
        newest[run] = max([newest.get(run, 0), *life["committed"]])
        assert (life["newest"] or 0) >= newest[run]
        if kill is None:
            assert life["code"] == 0 and life["weights"] == whole["weights"]
