"""Many adapters in one job are what separate trainings make of them."""

import os
import re
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from filelock import FileLock
from peft import LoraConfig

import adaptx as ax
from adaptx.data.read import read_examples
from adaptx.errors import OptionError, OutputExists, TrainingInterrupted
from adaptx.training import shared_step
from adaptx.training.display import Display
from adaptx.training.member import Trainee
from adaptx.training.plan import Plan
from adaptx.training.runs import read_log, read_run
from tests.conftest import SAMPLE

TRAIN, DEV = (read_examples(SAMPLE / f"{split}.jsonl") for split in ("train", "dev"))


def lora(r=4, **options):
    return LoraConfig(**({"r": r, "target_modules": "all-linear"} | options))


def member(name, config=None, train=TRAIN, dev=DEV, **settings):
    return ax.Member(
        name, config or lora(), train=train, dev=dev, settings={"epochs": 2, "lr": 3e-3} | settings
    )


def alone(encoder, one, **options):
    task = ax.tasks.Classification()
    return ax.train(
        encoder, task, one.config, name=one.name, train=one.train, dev=one.dev,
        **one.settings, **options,
    )  # fmt: skip


def history(adapter):
    return [
        [entry[key] for key in ("loss", "dev_loss") if key in entry]
        for entry in adapter.facts.training["history"]
    ]


def same(found, wanted, rel=1e-4):
    for mine, theirs in zip(history(found), history(wanted), strict=True):
        assert mine == pytest.approx(theirs, rel=rel)
    theirs = wanted.weights()
    assert found.weights().keys() == theirs.keys()
    for name, weight in found.weights().items():
        assert (weight - theirs[name]).norm() <= 20 * rel * theirs[name].norm() + 1e-6, name


MIXED = [
    member("plain"),
    member("narrow", lora(2, target_modules=["query", "output.dense"]), batch_size=5, seed=3),
    member("few rows", lora(8, use_rslora=True), train=TRAIN[:50], epochs=3, lr=1e-3),
    member("no dev", dev=None, epochs=1, clip=0.1),
    member("patient", patience=1, epochs=4, metric="dev_loss", smoothing=0.1),
    member("probe's head", probe_first=True, epochs=1),
]


@pytest.fixture
def threads():
    """How many torch has is put back."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def newly_begun(call):
    """What it gives in a new thread: torch's count there is the one that a worker set last."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


@pytest.mark.parametrize("fast", [True, False])
def test_each_has_the_losses_and_weights_of_its_own_training(small, fast):
    found = ax.train_many(small, MIXED, slots=3, fast=fast)  # two of them wait for a slot
    assert list(found.adapters) == [one.name for one in MIXED] and not found.failed
    for one in MIXED:
        same(found.adapters[one.name], alone(small, one, fast=fast))


def test_workers_share_out_the_threads(small, monkeypatch, threads):
    """As many workers as share them out evenly; and what comes of it can be repeated."""
    seen, own = set(), set()

    def seeing(work, found):
        def does(*args, **options):
            if threading.current_thread() is not threading.main_thread():
                found.add(torch.get_num_threads())
            return work(*args, **options)

        return does

    step = shared_step._forward_and_backward
    monkeypatch.setattr(shared_step, "_forward_and_backward", seeing(step, seen))
    monkeypatch.setattr(Trainee, "descend", seeing(Trainee.descend, own))
    # Five adapters, and towards the end fewer: four, three, or two workers.
    for many, shares in ((4, {1, 2}), (3, {1}), (6, {2, 3}), (1, set())):
        torch.set_num_threads(many)
        seen.clear()
        own.clear()
        found, again = (ax.train_many(small, MIXED, slots=5) for _ in range(2))
        assert newly_begun(torch.get_num_threads) == many
        assert seen == own == shares
        for one in MIXED:
            same(found.adapters[one.name], alone(small, one))
            mine, theirs = (f.adapters[one.name].weights() for f in (found, again))
            assert all(torch.equal(weight, theirs[at]) for at, weight in mine.items())


def test_what_a_worker_raises_ends_the_job(small, monkeypatch, tmp_path, threads):
    def fails(*args, **options):
        raise MemoryError("no room")

    monkeypatch.setattr(shared_step, "_forward_and_backward", fails)
    torch.set_num_threads(2)
    with pytest.raises(MemoryError):
        ax.train_many(small, [member("one"), member("two")], runs=tmp_path)
    assert newly_begun(torch.get_num_threads) == 2
    assert {read_run(tmp_path / name).state for name in ("one", "two")} == {"failed"}


def test_another_family_shares_its_passes_through_the_bank(small_folders, capsys):
    encoder = ax.Encoder.from_pretrained(small_folders["distilbert"])
    members = [member("one"), member("two", seed=5)]
    found = ax.train_many(encoder, members)
    assert capsys.readouterr().err.count("Not on the fast path: the family distilbert") == 1
    for name, adapter in found.adapters.items():
        same(adapter, alone(encoder, next(one for one in members if one.name == name)))


def test_bf16_is_near_to_separate_trainings(small):
    members = [member("one"), member("two", lora(8), seed=5)]
    found = ax.train_many(small, members, precision="bf16")
    for one in members:
        adapter = found.adapters[one.name]
        assert adapter.facts.training["precision"] == "bf16"
        wanted = alone(small, one, precision="bf16")
        for mine, theirs in zip(history(adapter), history(wanted), strict=True):
            assert mine == pytest.approx(theirs, rel=1e-2)


def test_one_members_data_is_nothing_to_another(small):
    constant, *others = (member("same"), member("a", seed=1), member("b", train=TRAIN[:40]))
    one, two = (
        ax.train_many(small, [constant, other]).adapters["same"].weights() for other in others
    )
    assert all(torch.allclose(weight, two[name], atol=1e-5) for name, weight in one.items())


@pytest.mark.parametrize("many", [1, 2])
def test_a_member_that_diverges_is_dropped(small, tmp_path, capsys, threads, many):
    torch.set_num_threads(many)
    members = [member("good"), member("bad", lr=1e28, clip=0.0), member("later", seed=2)]
    kept = []
    with shown() as bar:
        found = ax.train_many(small, members, slots=2, runs=tmp_path, done=kept.append)
    assert bar["total"] == bar["completed"] < 3 * 22
    assert list(found.adapters) == ["good", "later"] == [adapter.name for adapter in kept]
    assert "bad" in found.failed and "rows" in str(found.failed["bad"])
    assert "bad was dropped, the others go on" in capsys.readouterr().err
    states = {name: read_run(tmp_path / name).state for name in ("good", "bad", "later")}
    assert states == {"good": "done", "bad": "diverged", "later": "done"}
    for name, adapter in found.adapters.items():
        same(adapter, alone(small, next(one for one in members if one.name == name)))
        steps = read_log(read_run(tmp_path / name), "step")
        assert len(steps) == 22 and all(step["tokens"] > 0 for step in steps)


@pytest.mark.filterwarnings("ignore:third has no last checkpoint")
@pytest.mark.parametrize("every", [0.0, 300.0])
def test_one_that_cant_be_written_is_dropped(small, tmp_path, every):
    """The first where it is saved, the second's run, the third's checkpoint before its last one."""

    def save(adapter):
        (tmp_path / "runs" / "second").touch()
        shutil.rmtree(tmp_path / "runs" / "third" / "checkpoints", ignore_errors=True)
        (tmp_path / "runs" / "third" / "checkpoints").touch()
        adapter.save(tmp_path / "made" / adapter.name)

    (tmp_path / "made" / "first").mkdir(parents=True)
    (tmp_path / "made" / "first" / "mine.txt").write_text("x")
    members = [member("first", epochs=1), member("third"), member("second"), member("last")]
    found = ax.train_many(
        small, members, slots=2, runs=tmp_path / "runs", checkpoint_every=every, done=save
    )
    whole = ["third", "last"] if every else ["last"]
    assert list(found.adapters) == whole
    assert {path.name for path in (tmp_path / "made").iterdir()} == {"first", *whole}
    assert list(found.failed) == [one.name for one in members if one.name not in whole]
    for name, said in (("first", "wasn't written by adaptx"), ("second", "second")):
        assert said in str(found.failed[name])
    same(found.adapters["last"], alone(small, members[-1]))


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ([member("x"), member("x", seed=2)], "'x' is used twice"),
        ([], "at least one"),
        ([member("x"), member("y", lora(use_dora=True))], "y: dora brings layers of its own"),
        ([member("x", ax.Full())], "x: A probe or a whole model"),
        ([member("x", lora(target_modules=["qeury"]))], "x: target_modules: qeury"),
        ([member("x", epocs=3)], "x: Unknown setting epocs"),
        ([member("x", accumulate=2)], "x: accumulate"),
        ([member("x", dev=SAMPLE / "none.jsonl"), member("y", lr=-1)], r"x: .*none\.jsonl.* y: lr"),
    ],
)
def test_what_cant_be_is_said_of_each_before_any_training(small, tmp_path, members, named):
    with pytest.raises(OptionError, match=named):
        ax.train_many(small, members, runs=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_runs_folder_that_is_there_is_refused_before_any_training(small, tmp_path):
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "mine.txt").write_text("x")
    with pytest.raises(OptionError, match="wasn't written by adaptx"):
        ax.train_many(small, [member("one"), member("two")], runs=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


def test_an_interrupt_ends_every_run(small, tmp_path):
    def stop(adapter):
        if adapter.name == "middle":
            raise KeyboardInterrupt

    members = [member("short", epochs=1), member("middle"), member("long", epochs=3)]
    with pytest.raises(KeyboardInterrupt):
        ax.train_many(small, members, runs=tmp_path, done=stop)
    states = {name: read_run(tmp_path / name).state for name in ("short", "middle", "long")}
    assert states == {"short": "done", "middle": "failed", "long": "failed"}


@contextmanager
def shown():
    """The last display that was left inside, as its bar stands: {total, completed, description}."""

    def leave(self, *error):
        found.update({name: getattr(self.bar.tasks[0], name) for name in wanted})
        original(self, *error)

    found, original, wanted = {}, Display.__exit__, ("total", "completed", "description")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Display, "__exit__", leave)
        yield found


def test_the_bar_counts_the_steps_that_are_left_and_shows_the_best_score(small, tmp_path):
    late = {"lr": 1e28, "clip": 0.0, "warmup": 0.5, "epochs": 4, "batch_size": 168}
    members = [
        member("patient", patience=1, lr=3e-2, epochs=30),
        member("late", **late),
        member("long", epochs=20),
    ]
    with shown() as bar, signal_at(40), pytest.raises(TrainingInterrupted):
        ax.train_many(small, members, runs=tmp_path)
    assert bar["total"] == 30 * 11 + 2 + 20 * 11 > bar["completed"]  # the last one goes in step 2
    assert re.search(
        r"1/3 done, [\d,]+ tokens/s, [1-9]?[\d.]+ GB  patient 2: \d\.\d+, best 0\.\d",
        bar["description"],
    )
    with shown() as bar:
        found = ax.train_many(small, members, runs=tmp_path, resume=True)
    assert len(found.adapters["patient"].facts.training["history"]) < 30
    assert bar["total"] == bar["completed"]


def test_one_training_shows_its_speed_and_its_best_score(small):
    with shown() as bar:
        adapter = alone(small, member("x"))
    best = adapter.facts.training["history"][0]["accuracy"]
    assert re.search(
        rf"epoch 2  loss \d.*  [\d,]+ tokens/s  (\d+\.\d) GB  best accuracy {best:.3f}",
        bar["description"],
    )


@contextmanager
def signal_at(step, number=signal.SIGTERM):
    """The signal comes when the members have drawn so many batches together."""

    def steps(self, epoch):
        for one in original(self, epoch):
            drawn.append(one)
            if len(drawn) == step:
                os.kill(os.getpid(), number)
            yield one

    drawn, original = [], Plan.steps
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plan, "steps", steps)
        yield


def losses_of(run):
    return [(e["step"], e["epoch"], e["loss"], e["lr"]) for e in read_log(read_run(run), "step")]


CUT = [
    member("short", train=TRAIN[:60], epochs=1),
    member("long", epochs=3),
    member("patient", train=TRAIN[:100], seed=2, patience=1, epochs=9),
    member("last", seed=3, epochs=1),
]
DROPPING = [member("one", lora(lora_dropout=0.3)), member("two", lora(lora_dropout=0.1), seed=5)]


@pytest.mark.parametrize(
    ("members", "at"),
    [(CUT, 3), (CUT, 13), (CUT, 30), (DROPPING, 17)],
    ids=["at once", "one waits", "one is done", "dropout"],
)
def test_a_job_that_was_cut_off_ends_in_the_same_losses_and_weights(small, tmp_path, members, at):
    whole = ax.train_many(small, members, slots=3, runs=tmp_path / "whole")
    runs = tmp_path / "cut"
    with signal_at(at), pytest.raises(TrainingInterrupted, match=r"--resume \(runs=") as caught:
        ax.train_many(small, members, slots=3, runs=runs, resume=True)
    assert caught.value.signal == signal.SIGTERM and f"--run {runs} --resume" in str(caught.value)
    states = {path.name: read_run(path).state for path in runs.iterdir()}
    begun = [one.name for one in members if one.name in states]
    assert {name for name, state in states.items() if state == "interrupted"} == {
        name for name in begun if name in caught.value.adapters
    }
    handed = []
    found = ax.train_many(small, members, slots=3, runs=runs, resume=True, done=handed.append)
    assert {adapter.name for adapter in handed} == set(caught.value.adapters)
    assert list(found.adapters) == [one.name for one in members] and not found.failed
    for name, adapter in found.adapters.items():
        assert losses_of(runs / name) == losses_of(tmp_path / "whole" / name), name
        assert read_run(runs / name).state == "done"
        wanted = whole.adapters[name].weights()
        assert all(torch.equal(weight, wanted[at]) for at, weight in adapter.weights().items())


def test_what_is_finished_is_handed_back_without_a_step(small, tmp_path):
    members = [member("one", epochs=1), member("two", patience=1, lr=3e-2, epochs=30)]
    first = ax.train_many(small, members, runs=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again = ax.train_many(small, members, runs=tmp_path, resume=True, done=pytest.fail)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    for name, adapter in first.adapters.items():
        there, here = (one.facts.training for one in (adapter, again.adapters[name]))
        assert (here["history"], here["best"]) == (there["history"], there["best"])
        assert len(here["history"]) < 30  # patience was at its end
        wanted = adapter.weights()
        found = again.adapters[name].weights()
        assert all(torch.equal(weight, wanted[at]) for at, weight in found.items())


def test_a_job_that_was_killed_goes_on_from_its_last_checkpoints(small, tmp_path):
    def die(adapter):
        raise KeyboardInterrupt  # without a word to anybody else

    members = [member("short", epochs=1), member("long")]
    with pytest.raises(KeyboardInterrupt):
        ax.train_many(small, members, runs=tmp_path, checkpoint_every=0.0, done=die)
    handed = []
    found = ax.train_many(small, members, runs=tmp_path, resume=True, done=handed.append)
    assert [adapter.name for adapter in handed] == ["short", "long"]
    for one in members:
        same(found.adapters[one.name], alone(small, one))
        steps = [step for step, *_ in losses_of(tmp_path / one.name)]
        assert steps == list(range(1, 11 * one.settings["epochs"] + 1))


def test_another_jobs_runs_are_refused(small, tmp_path):
    members = [member("one"), member("two")]
    with signal_at(9, signal.SIGINT), pytest.raises(TrainingInterrupted):
        ax.train_many(small, members, runs=tmp_path)
    with pytest.raises(OutputExists, match="which is interrupted: go on with it by --resume"):
        ax.train_many(small, members, runs=tmp_path)
    changed = [member("one"), member("two", lr=1e-5)]
    with pytest.raises(OptionError, match=r"trained. two: .*lr was 0\.003 and is 1e-05"):
        ax.train_many(small, changed, runs=tmp_path, resume=True)
    assert read_run(tmp_path / "one").state == "interrupted"
    run = tmp_path / "one" / "run.json"
    run.write_text(run.read_text().replace('"interrupted"', '"running"'))
    with FileLock(run.with_name("run.lock")), pytest.raises(OptionError, match="another process"):
        ax.train_many(small, members, runs=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"resume": True}, "Which runs"), ({"checkpoint_every": -1}, "checkpoint_every=-1")],
)
def test_what_resuming_needs_is_said(small, options, named):
    with pytest.raises(OptionError, match=named):
        ax.train_many(small, [member("x")], **options)
