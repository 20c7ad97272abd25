import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from peft import LoraConfig

import adaptx as ax
from adaptx import machine
from adaptx.data.encode import TextEncoder
from adaptx.data.read import Example, read_examples
from adaptx.data.records import Pair, Passage
from adaptx.errors import DataError, OptionError, SiteError, TrainingDiverged
from adaptx.training.runs import read_log, read_run
from adaptx.training.settings import Settings
from tests.conftest import SAMPLE

LORA = LoraConfig(r=4, target_modules="all-linear")


def fit(encoder, config=LORA, task=None, **options):
    defaults = {
        "name": "x",
        "train": SAMPLE / "train.jsonl",
        "dev": SAMPLE / "dev.jsonl",
        "epochs": 2,
    }
    return ax.train(encoder, task or ax.tasks.Classification(), config, **(defaults | options))


def losses(adapter):
    return [entry["loss"] for entry in adapter.facts.training["history"]]


def test_it_learns_and_keeps_the_best_epoch_on_dev(small):
    adapter = fit(small, epochs=12, lr=1e-2, batch_size=32)
    training = adapter.facts.training
    assert losses(adapter)[-1] < 0.7 * losses(adapter)[0]
    best = max(entry["accuracy"] for entry in training["history"])
    assert training["best"]["accuracy"] == best
    dev = read_examples(SAMPLE / "dev.jsonl")
    answers = small.predict([row.text for row in dev], adapter)
    right = sum(a.label == row.label for a, row in zip(answers, dev, strict=True))
    assert right / len(dev) == pytest.approx(best)
    assert {"macro_f1", "weighted_f1", "dev_loss", "seconds"} <= training["best"].keys()
    assert not any(p.requires_grad for p in adapter.parameters())


def test_the_frozen_encoder_stays_as_it_was(small):
    before = {name: value.clone() for name, value in small.model.state_dict().items()}
    fit(small, epochs=1, lr=1e-2)
    after = small.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not small.model.training


def test_a_seed_repeats_a_run_exactly_and_another_differs(small):
    config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.2)
    one, same, other = (fit(small, config, seed=seed) for seed in (1, 1, 2))
    assert losses(one) == losses(same) != losses(other)
    state, again = one.state_dict(), same.state_dict()
    assert all(torch.equal(state[name], again[name]) for name in state)


@pytest.mark.parametrize("accumulate", [3, 16])
def test_accumulation_gives_the_losses_of_the_whole_batch(small, accumulate):
    whole = fit(small, lr=3e-3)
    parts = fit(small, lr=3e-3, accumulate=accumulate)
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-4)


def test_a_bound_on_tokens_gives_the_losses_of_the_whole_batch(small, monkeypatch):
    most = 0

    def batch(self, ids, rows, original=TextEncoder.batch):
        nonlocal most
        found = original(self, ids, rows)
        most = max(most, found.input_ids.size)
        return found

    whole = fit(small, lr=3e-3)
    with monkeypatch.context() as patch:
        patch.setattr(TextEncoder, "batch", batch)
        parts = fit(small, lr=3e-3, micro_tokens=150)
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-4)
    assert 75 < most <= 300  # dev's batches, without gradients, may have twice as many


def test_a_bound_on_tokens_that_cant_be_kept_is_refused(small):
    with pytest.raises(OptionError, match=r"micro_tokens=5, and the longest row has \d+ tokens"):
        fit(small, micro_tokens=5)
    with pytest.raises(OptionError, match="micro_tokens=0 must be a whole number"):
        fit(small, micro_tokens=0)


def test_checkpointing_gives_the_same_losses(small_folders):
    plain, recomputed = (
        fit(ax.Encoder.from_pretrained(small_folders["bert"]), checkpointing=on, lr=3e-3)
        for on in (False, True)
    )
    assert losses(recomputed) == pytest.approx(losses(plain), rel=1e-5)


def test_early_stopping_stops_after_patience_epochs_without_a_gain(small):
    adapter = fit(small, epochs=30, lr=3e-2, patience=2)  # it soon knows train by heart
    history = adapter.facts.training["history"]
    best = adapter.facts.training["best"]["epoch"]
    assert len(history) == best + 2 < 30


def test_without_dev_the_last_epoch_is_kept(small):
    adapter = fit(small, dev=None, epochs=2)
    assert adapter.facts.training["best"] is None
    assert [set(e) for e in adapter.facts.training["history"]] == [{"epoch", "loss", "seconds"}] * 2


def test_a_probe_beats_chance_and_has_no_sites(encoder):
    probe = fit(encoder, None)
    assert probe.sites == {}
    assert probe.facts.method == "probe"
    assert probe.facts.training["best"]["accuracy"] > 0.6  # seven labels: chance is 0.14
    dev = read_examples(SAMPLE / "dev.jsonl")
    answers = encoder.predict([row.text for row in dev], probe)
    right = sum(a.label == row.label for a, row in zip(answers, dev, strict=True))
    assert right / len(dev) == pytest.approx(probe.facts.training["best"]["accuracy"])


def test_a_probe_is_scikit_learns_logistic_regression(encoder):
    """Two labels and no dev: one row of coefficients, and cross-validation."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    rows = [r for r in read_examples(SAMPLE / "train.jsonl") if r.label in ("sports", "health")]
    probe = fit(encoder, None, train=rows, dev=None)
    x = encoder.embed([row.text for row in rows])
    strength = probe.facts.training["history"][0]["strength"]
    mean, std = x.mean(0), x.std(0)
    oracle = LogisticRegression(C=strength, max_iter=2000).fit(
        (x - mean) / std, [r.label for r in rows]
    )
    answers = encoder.predict([row.text for row in rows], probe)
    wanted = oracle.predict_proba((x - mean) / std)
    found = np.array([[a.scores[label] for label in oracle.classes_] for a in answers])
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_divergence_names_the_step_and_keeps_the_last_good(small):
    with pytest.raises(TrainingDiverged, match="step 1 ") as caught:
        fit(small, train=[Example("a b", "x"), Example("c d", "y")], dev=None, lr=1e29, warmup=0.9,
            epochs=1, clip=0.0, task=Exploding())  # fmt: skip
    assert caught.value.adapter is None


class Exploding(ax.tasks.Classification):
    """A task whose loss turns NaN after `good` calls."""

    def __init__(self, labels=(), pooling="mean", good=0):
        super().__init__(labels, pooling)
        object.__setattr__(self, "good", good)

    def fit(self, train, dev=()):
        return Exploding(super().fit(train, dev).labels, good=self.good)

    def losses(self, logits, targets, smoothing=0.0):
        found = super().losses(logits, targets)
        if not torch.is_grad_enabled():
            return found
        object.__setattr__(self, "good", self.good - 1)
        return found if self.good >= 0 else found * float("nan")


def test_divergence_after_an_epoch_keeps_that_epoch(small):
    with pytest.raises(TrainingDiverged, match=r"step 14 .*epoch 2.*nan") as caught:
        fit(small, batch_size=16, epochs=3, lr=1e-2, task=Exploding(good=13))  # 11 steps an epoch
    kept = caught.value.adapter
    assert kept.facts.training["best"]["epoch"] == 1
    assert all(p.isfinite().all() for p in kept.parameters())
    assert caught.value.step == 14


@pytest.mark.parametrize("dev", [None, SAMPLE / "dev.jsonl"])
def test_divergence_in_an_epochs_last_step_is_noticed(small, dev):
    with pytest.raises(TrainingDiverged, match="step 1 ") as caught:
        fit(small, dev=dev, lr=1e29, batch_size=168, warmup=0.0, clip=0.0, epochs=1)
    assert caught.value.adapter is None


def test_divergence_without_dev_keeps_an_adapter_that_can_be_saved(small, tmp_path):
    with pytest.raises(TrainingDiverged, match="epoch 2") as caught:
        fit(small, dev=None, epochs=3, lr=1e-2, task=Exploding(good=13))
    kept = caught.value.adapter
    kept.save(tmp_path / "kept")
    assert ax.Adapter.load(tmp_path / "kept", small).facts.training["best"] is None


def test_what_accelerate_says_of_accumulation_changes_nothing(small):
    plain = fit(small, lr=3e-3)
    divided = fit(small, lr=3e-3, accelerator=Accelerator(gradient_accumulation_steps=4))
    assert losses(divided) == pytest.approx(losses(plain), rel=1e-6)


def test_an_adapter_follows_its_encoder_to_another_device(small_folders):
    """The meta device stands for a GPU: torch refuses to mix it with the CPU's tensors."""
    from adaptx.adapters.bank import Bank

    encoder = ax.Encoder.from_pretrained(small_folders["bert"])
    adapter = ax.Adapter.new(encoder, None, LORA, name="x")
    encoder.to("meta")
    x = torch.ones(3, 5, 32, device="meta")
    name = "encoder.layer.0.attention.self.query"
    for slots in ([1], [0, 1, 1]):
        route = Bank.of([adapter], encoder).route(slots)
        assert route.at(encoder.sites[name], x).device.type == "meta"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"seed": -1}, "seed=-1"),
        ({"clip": float("nan")}, "clip=nan"),
        ({"weight_decay": float("inf")}, "weight_decay=inf"),
        ({"smoothing": 1.0}, "smoothing=1.0"),
        ({"lr": "1e-3"}, "lr='1e-3'"),
        ({"dev": []}, "no dev set"),
        ({"config": {"r": 2}}, "peft.LoraConfig"),
        ({"config": LoraConfig(lora_alpha=float("nan"))}, "lora_alpha"),
        ({"config": LoraConfig(target_modules="*[")}, "regular expression"),
        ({"epochs": 0}, "epochs=0"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"warmup": 1.0}, "warmup"),
        ({"metric": "f1"}, "macro_f1"),
        ({"batch_size": 2, "accumulate": 3}, "accumulate=3"),
        ({"patience": 0}, "patience=0"),
        ({"patience": 2, "dev": None}, "patience=2 .*no dev set"),
        ({"probe_first": "no"}, "probe_first='no' must be True or False"),
        ({"average": "false"}, "average='false' must be True or False"),
        ({"learning_rate": 1e-3}, "learning_rate"),
        ({"precision": "fp8"}, "bf16"),
    ],
)
def test_bad_options_are_named(small, options, named):
    with pytest.raises(OptionError, match=named):
        fit(small, **options)


def test_data_is_checked_before_any_work(small):
    one = [Example("a", "x", "f.jsonl", 1), Example("b", "x", "f.jsonl", 2)]
    with pytest.raises(DataError, match="one class only"):
        fit(small, train=one, dev=None)
    two = [*one, Example("c", "y", "f.jsonl", 3)]
    with pytest.raises(DataError, match=r"f\.jsonl, line 3: .*unknown label 'y'.*x, w"):
        fit(small, train=two, task=ax.tasks.Classification(("x", "w")))
    with pytest.raises(
        DataError, match=r"d\.jsonl, line 9: .*'z' stands in dev but not in train .*x, y"
    ):
        fit(small, train=two, dev=[Example("d", "z", "d.jsonl", 9)])
    task = ax.tasks.Classification(("x", "y", "z"))
    with pytest.raises(DataError, match="can't be learnt"):
        fit(small, task=task, train=two, dev=[Example("d", "z", "d.jsonl", 9)])
    with pytest.raises(SiteError, match="qeury"):
        fit(small, LoraConfig(target_modules=["qeury"]))


def test_a_trainings_precision_is_its_own(small):
    given = ({"precision": "bf16"}, {}, {"precision": "auto"})
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        said = [fit(small, **options).facts.training["precision"] for options in given]
    assert said == ["bf16", "no", "bf16" if machine.has_bf16() else "no"]
    slow = [str(warning.message) for warning in warned if "bf16" in str(warning.message)]
    assert len(slow) == (machine.flags() is not None and not machine.has_bf16())


def test_fp16_needs_a_device_that_scales(small, monkeypatch):
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})  # an earlier test's precision is its
    for options in ({"precision": "fp16"}, {"accelerator": Accelerator(mixed_precision="fp16")}):
        with pytest.raises(OptionError, match=r"not on this cpu: precision .auto."):
            fit(small, **options)
    with pytest.raises(OptionError, match="not on this cpu"):
        ax.train_many(small, [ax.Member("x", LORA, SAMPLE / "train.jsonl")], precision="fp16")


@pytest.mark.parametrize("precision", [None, "bf16"])
def test_what_accelerate_refuses_isnt_blamed_on_the_precision(small, monkeypatch, precision):
    for state in (PartialState, AcceleratorState):  # as in a process that just began
        monkeypatch.setattr(state, "_shared_state", {})
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    launched = {"WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0}
    for name, value in launched.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(OptionError, match=r"Accelerate refuses to begin: .*MASTER_ADDR"):
        fit(small, precision=precision)


def test_an_accelerator_of_ones_own_keeps_nothing_of_a_training(small):
    accelerator = Accelerator()
    for _ in range(2):
        fit(small, accelerator=accelerator)
    model = accelerator.prepare(torch.nn.Linear(2, 2))
    with pytest.raises(TrainingDiverged):
        fit(small, accelerator=accelerator, task=Exploding())
    assert (accelerator._models, accelerator._optimizers) == ([model], [])


def test_settings_say_what_they_are():
    assert set(Settings.__dataclass_fields__) <= set((Settings.__doc__ or "").split())


def run_ranks(world, folder, meeting, *more):
    script = Path(__file__).with_name("two_processes.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder), str(SAMPLE), str(meeting), *map(str, more)],
            env={
                **os.environ,
                **dict.fromkeys(("RANK", "LOCAL_RANK") if world > 1 else (), str(rank)),
                **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE")[: 2 * (world > 1)], str(world)),
                "GLOO_SOCKET_IFNAME": "lo",
                "OMP_NUM_THREADS": "1",
                "ACCELERATE_USE_CPU": "true",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    outputs = [rank.communicate(timeout=300) for rank in ranks]
    for rank, (_, err) in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, err
    return [json.loads(out.strip().splitlines()[-1]) for out, _ in outputs]


def test_two_processes_give_the_losses_of_one(small_folders, tmp_path):
    (alone,) = run_ranks(1, small_folders["bert"], tmp_path / "one")
    ranks = run_ranks(2, small_folders["bert"], tmp_path / "two", tmp_path / "run")
    assert alone["processes"] == 1
    assert [rank["processes"] for rank in ranks] == [2, 2]
    for rank in ranks:
        for key in ("loss", "dev_loss", "accuracy"):
            found = [entry[key] for entry in rank["history"]]
            assert found == pytest.approx([e[key] for e in alone["history"]], rel=1e-4)
        assert rank["weights"] == pytest.approx(alone["weights"], rel=1e-3, abs=1e-6)
    assert ranks[0]["weights"] == ranks[1]["weights"]
    run = read_run(tmp_path / "run")  # written by the first process, about both
    assert (run.state, run.processes) == ("done", 2)
    assert [e["loss"] for e in read_log(run, "epoch")] == [e["loss"] for e in ranks[0]["history"]]
    text = ax.Encoder.from_pretrained(small_folders["bert"]).text
    tokens = sum(map(len, text.ids([row.text for row in read_examples(SAMPLE / "train.jsonl")])))
    assert sum(step["tokens"] for step in read_log(run, "step")) == 3 * tokens


@pytest.mark.slow
def test_bf16_trains_to_losses_near_fp32(small_folders, tmp_path):
    code = f"""
import json, sys
from peft import LoraConfig
import adaptx as ax
encoder = ax.Encoder.from_pretrained({str(small_folders["bert"])!r})
adapter = ax.train(encoder, ax.tasks.Classification(), LoraConfig(r=4, target_modules="all-linear"),
    name="x", train={str(SAMPLE / "train.jsonl")!r}, epochs=2, lr=3e-3, precision=sys.argv[1])
print(json.dumps([adapter.facts.training["precision"]]
    + [e["loss"] for e in adapter.facts.training["history"]]))
"""
    found = {}
    for precision in ("no", "bf16"):
        done = subprocess.run(
            [sys.executable, "-c", code, precision], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        found[precision] = json.loads(done.stdout.strip().splitlines()[-1])
        assert found[precision][0] == precision
    assert found["bf16"][1:] == pytest.approx(found["no"][1:], rel=2e-2)
    assert found["bf16"][1:] != found["no"][1:]


@pytest.mark.parametrize("config", [LORA, None], ids=["lora", "probe"])
def test_the_lowest_dev_loss_may_choose(small, config):
    adapter = fit(small, config=config, epochs=5, lr=3e-2, metric="dev_loss")
    training = adapter.facts.training
    losses = [entry["dev_loss"] for entry in training["history"]]
    assert training["best"]["dev_loss"] == min(losses)
    if config is None:  # of the strengths, none may give a lower loss than the one chosen
        other = fit(small, config=None, metric="accuracy")
        assert min(losses) <= other.facts.training["best"]["dev_loss"] + 1e-9


@pytest.mark.parametrize(
    ("task", "rows"),
    [
        (ax.tasks.Similarity(), [Pair("a", "b", "1.0"), Pair("c", "d", "2.0")]),
        (ax.tasks.QuestionAnswering(), [Passage("1", "Nani?", "Asha yuko", (("Asha", 0),))]),
    ],
)
def test_smoothing_is_refused_where_a_loss_doesnt_know_it(small, task, rows):
    wrong = f"smoothing=0.1 would have no effect on {task.kind}"
    with pytest.raises(OptionError, match=wrong):
        ax.train(small, task, LORA, name="x", train=rows, smoothing=0.1)
    member = ax.Member("x", LORA, train=rows, task=task, settings={"smoothing": 0.1})
    with pytest.raises(OptionError, match=f"x: {wrong}"):
        ax.train_many(small, [member])
