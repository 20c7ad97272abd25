"""Several tasks on one adapter: against a loop by hand on PEFT's model, and formulas."""

import os
import signal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from transformers import get_linear_schedule_with_warmup

import adaptx as ax
from adaptx.data.conll import read_conll
from adaptx.data.read import read_examples
from adaptx.errors import DataError, OptionError, TrainingDiverged, TrainingInterrupted
from adaptx.training.mixture import SAMPLINGS, MixedPlan, Sampling
from adaptx.training.runs import read_log, read_run
from adaptx.training.shared import Shared
from adaptx.training.together import Part, Source
from tests.adapters.peft_oracle import peft_model
from tests.conftest import ROOT, SAMPLE
from tests.training.test_scaling import FSDP, alone, ranks
from tests.training.test_scaling import same as same_said

TASKS = ROOT / "recipes" / "data" / "tasks"
LORA = LoraConfig(r=4, target_modules="all-linear")
TOPICS = read_examples(SAMPLE / "train.jsonl")
DEV = read_examples(SAMPLE / "dev.jsonl")
NAMES = list(read_conll(TASKS / "names.conll"))
sizes = st.lists(st.integers(1, 300), min_size=1, max_size=6)


def parts(dev=True, weight=1.0):
    names = TASKS / "names.conll"
    return {
        "topics": Part(
            ax.tasks.Classification(), [Source(TOPICS[:60], DEV if dev else None, "sw")]
        ),
        "names": Part(
            ax.tasks.TokenClassification(), [Source(names, names if dev else None)], weight
        ),
    }


def together(encoder, given=None, config=LORA, **options):
    defaults = {"name": "sw", "epochs": 2, "batch_size": 12, "lr": 3e-3}
    return ax.train_together(encoder, given or parts(), config, **(defaults | options))


@pytest.fixture(scope="module")
def trained(small):
    return together(small)


@given(sizes, st.sampled_from(SAMPLINGS), st.floats(0.5, 20))
def test_shares_are_their_formulas(sizes, kind, temperature):
    shares, rows = Sampling(kind, temperature).shares(sizes, 3), np.array(sizes, float)
    assert shares.sum() == pytest.approx(1) and (shares > 0).all()
    wanted = {
        "proportional": rows / rows.sum(),
        "uniform": np.ones(len(rows)) / len(rows),
        "temperature": rows ** (1 / temperature) / (rows ** (1 / temperature)).sum(),
    }
    if kind in wanted:
        assert shares == pytest.approx(wanted[kind])


@given(sizes, st.integers(1, 5), st.floats(0.5, 8))
def test_unimax_reads_nothing_more_often_than_asked_and_the_rest_alike(sizes, epochs, passes):
    rows = np.array(sizes, float)
    budget = epochs * rows.sum()
    reads = Sampling("unimax", passes=passes).shares(sizes, epochs) * budget
    if passes * rows.sum() < budget:  # it can't be: all are read alike often
        assert reads / rows == pytest.approx(np.full(len(rows), epochs))
        return
    assert (reads <= passes * rows * (1 + 1e-9)).all()
    capped = reads >= passes * rows * (1 - 1e-9)
    if not capped.all():
        free = reads[~capped]
        assert free == pytest.approx(np.full(len(free), free[0]))
        assert (reads[capped] <= free[0] * (1 + 1e-9)).all()


@settings(max_examples=50)
@given(sizes, st.sampled_from(SAMPLINGS), st.integers(1, 40), st.integers(1, 3), st.integers(1, 3))
def test_any_number_of_processes_takes_the_same_rows(sizes, kind, batch, accumulate, processes):
    shares = Sampling(kind).shares(sizes, 2)
    batch = max(batch, accumulate)
    plans = [
        MixedPlan(sizes, shares, batch, accumulate, processes, process)
        for process in range(processes)
    ]
    for steps in zip(*(plan.steps(2) for plan in plans), strict=True):
        rows = np.concatenate([part for step in steps for part in step.micro_batches])
        assert sorted(rows) == sorted(steps[0].all_rows) and len(rows) == batch == steps[0].rows


@settings(max_examples=50)
@given(sizes, st.sampled_from(SAMPLINGS), st.integers(1, 40), st.integers(0, 9))
def test_each_source_is_read_in_its_share_and_each_pass_has_every_row_once(
    sizes, kind, batch, seed
):
    shares = Sampling(kind).shares(sizes, 3)
    plan = MixedPlan(sizes, shares, batch, seed=seed)
    rows = np.concatenate([step.all_rows for epoch in (1, 2, 3) for step in plan.steps(epoch)])
    assert len(rows) == 3 * len(plan) * batch
    start = 0
    for size, share in zip(sizes, shares, strict=True):
        own = rows[(rows >= start) & (rows < start + size)]
        assert abs(len(own) - share * len(rows)) < 6  # of the golden ratio's discrepancy
        for number in range(len(own) // size):
            assert len(set(own[number * size : (number + 1) * size])) == size
        start += size


@settings(max_examples=50)
@given(st.data(), st.lists(st.tuples(st.integers(2, 300), st.booleans()), min_size=1, max_size=5))
def test_rows_that_are_contrasted_are_never_alone_in_a_micro_batch(data, sources):
    sizes, contrasts = map(list, zip(*sources, strict=True))
    shares = Sampling(data.draw(st.sampled_from(SAMPLINGS))).shares(sizes, 3)
    accumulate, processes = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    batch = data.draw(st.integers(2 * accumulate * processes, 60))
    plans = [
        MixedPlan(sizes, shares, batch, accumulate, processes, process, 1, contrasts)
        for process in range(processes)
    ]
    ends, all_rows = np.cumsum(sizes), []
    for epoch in (1, 2, 3):
        for steps in zip(*(plan.steps(epoch) for plan in plans), strict=True):
            micro = [part for step in steps for part in step.micro_batches]
            assert sorted(np.concatenate(micro)) == sorted(steps[0].all_rows)
            all_rows.append(steps[0].all_rows)
            for rows in micro:
                there = np.bincount(np.searchsorted(ends, rows, side="right"), minlength=len(sizes))
                assert not (there[contrasts] == 1).any()
    rows = np.concatenate(all_rows)
    # Blocks of two are twice as coarse as rows; some of three make it a little coarser yet.
    bound = 12 if batch % (2 * accumulate * processes) == 0 else 12 + 0.02 * len(rows)
    for source, (size, share) in enumerate(zip(sizes, shares, strict=True)):
        own = rows[np.searchsorted(ends, rows, side="right") == source]
        assert abs(len(own) - share * len(rows)) < bound
        for number in range(len(own) // size):
            assert len(set(own[number * size : (number + 1) * size])) == size


def test_pairs_learn_beside_another_task_in_small_micro_batches(small, tmp_path):
    """Of a batch of 12 in three parts, half of which are pairs: none is without a wrong answer."""
    pairs = TASKS / "translations.tsv"
    given = {"search": Part(ax.tasks.Retrieval(), [Source(pairs, pairs)]), **parts()}
    del given["names"]
    together(small, given, accumulate=3, epochs=4, sampling="uniform", run=tmp_path / "run")
    first, *_, last = read_log(read_run(tmp_path / "run"), "epoch")
    assert last["search.dev_loss"] < first["search.dev_loss"]
    with pytest.raises(OptionError, match="12 pairs of a batch, in 7 micro-batches"):
        together(small, given, accumulate=7)


@pytest.mark.parametrize("fast", [True, False])
def test_it_is_the_loop_written_by_hand_on_pefts_model(small, small_folders, fast):
    """Two epochs of two tasks with a weight; no dev, no averaging: the last weights."""
    given_parts, epochs, size, lr = parts(dev=False, weight=0.3), 2, 10, 3e-3
    found = together(
        small, given_parts, epochs=epochs, batch_size=size, lr=lr, average=False, fast=fast,
        sampling="uniform", seed=3,
    )  # fmt: skip
    model = peft_model(small_folders["bert"], {"x": LORA})
    start = ax.Adapter.new(small, None, LORA, name="x", seed=3)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "lora_" in name
        if "lora_" in name:
            site, letter = name.removeprefix("base_model.model.").split(".lora_")
            ours = start.sites[site]
            parameter.data.copy_(ours.a.data if letter[0] == "A" else ours.b.data)
    tasks = {"topics": found["topics"].task, "names": found["names"].task}
    records = {"topics": TOPICS[:60], "names": NAMES}
    heads, windows = {}, {}
    for name, task in tasks.items():
        heads[name] = torch.nn.Linear(small.hidden_size, task.outputs)
        generator = torch.Generator().manual_seed(3)
        torch.nn.init.normal_(heads[name].weight, std=0.02, generator=generator)
        torch.nn.init.zeros_(heads[name].bias)
        windows[name] = [
            window
            for ws in found[name].windows(small.text, task.inputs(records[name]))
            for window in ws
        ]
    many = {name: len(found) for name, found in windows.items()}
    plan = MixedPlan(list(many.values()), np.array([0.5, 0.5]), size, seed=3)
    trains = [p for p in model.parameters() if p.requires_grad]
    for head in heads.values():
        trains += head.parameters()
    groups = [
        {"params": [p for p in trains if p.ndim > 1]},
        {"params": [p for p in trains if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=0.01)
    total = epochs * len(plan)
    schedule = get_linear_schedule_with_warmup(optimizer, int(0.1 * total), total)
    for epoch in (1, 2):
        for step in plan.steps(epoch):
            loss = 0.0
            for row in step.all_rows.tolist():
                name = "topics" if row < many["topics"] else "names"
                place = row if name == "topics" else row - many["topics"]
                ids = torch.tensor([windows[name][place].ids])
                (states,) = model(input_ids=ids).last_hidden_state
                if name == "topics":
                    gold = tasks[name].labels.index(records[name][place].label)
                    logits, gold = heads[name](states.mean(0))[None], torch.tensor([gold])
                else:
                    logits = heads[name](states)
                    ids_of = tasks[name].targets([records[name][place]], [[windows[name][place]]])
                    gold = torch.from_numpy(ids_of[0])
                one = torch.nn.functional.cross_entropy(logits, gold, ignore_index=-100)
                loss = loss + one * (0.3 if name == "names" else 1.0) / size
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trains, 1.0)
            optimizer.step()
            schedule.step()
    state = model.state_dict()
    for name, adapter in found.items():
        for site, part in adapter.sites.items():
            for letter, ours in (("A", part.a), ("B", part.b)):
                wanted = state[f"base_model.model.{site}.lora_{letter}.x.weight"]
                assert (ours - wanted).norm() <= 1e-3 * wanted.norm() + 1e-6, (name, site)
        assert torch.allclose(adapter.head.weight, heads[name].weight, atol=1e-4)


def test_what_comes_of_it_are_adapters_with_the_same_sites(small, trained, tmp_path):
    assert list(trained) == ["topics", "names"]
    one, two = trained.values()
    assert (one.name, two.name) == ("sw-topics", "sw-names")
    assert one.facts.language == "sw" and two.facts.language is None
    for site, part in one.sites.items():
        assert torch.equal(part.a, two.sites[site].a) and torch.equal(part.b, two.sites[site].b)
    for name, adapter in trained.items():
        adapter.save(tmp_path / name)
        again = ax.Adapter.load(tmp_path / name, small)
        assert again.facts.training["together"] == ["names", "topics"]
        texts = ["Asha aliondoka Dodoma Jumatatu."]
        assert str(small.predict(texts, again)) == str(small.predict(texts, adapter))


def test_the_best_epoch_is_that_of_the_mean_and_its_scores_are_evaluates(small, trained):
    bests = {name: adapter.facts.training["best"] for name, adapter in trained.items()}
    assert len({best["epoch"] for best in bests.values()}) == 1
    rows = {"topics": DEV[:60], "names": NAMES}
    for name, adapter in trained.items():
        scores = ax.evaluate(small, adapter, rows[name]).scores
        metric = adapter.task.metrics[0]
        assert bests[name][metric] == pytest.approx(scores[metric])
    assert trained["topics"].facts.training["train_rows"] == 60
    history = trained["names"].facts.training["history"]
    assert [entry["epoch"] for entry in history] == [1, 2] and "weighted_f1" not in history[0]


def test_languages_of_a_task_share_its_head_and_have_scores_of_their_own(small, tmp_path):
    english = read_examples(ROOT / "recipes" / "data" / "eng" / "test.jsonl")[:40]
    given_parts = {
        "topics": Part(
            ax.tasks.Classification(),
            [Source(TOPICS[:40], DEV[:20], "sw"), Source(english, english[:10], "en")],
        )
    }
    metric = "topics.en.accuracy"
    found = together(small, given_parts, run=tmp_path / "run", metric=metric)["topics"]
    assert found.facts.language is None and found.facts.training["train_rows"] == 80
    for entry in read_log(read_run(tmp_path / "run"), "epoch"):
        each = [entry[f"topics.{language}.accuracy"] for language in ("sw", "en")]
        assert entry["topics.accuracy"] == pytest.approx(np.mean(each)) == entry["mean"]
    entries = {e["epoch"]: e for e in read_log(read_run(tmp_path / "run"), "epoch")}
    best = read_run(tmp_path / "run").best
    assert best[metric] == max(entry[metric] for entry in entries.values())


def test_plain_text_trains_beside_a_task_and_the_mean_is_of_those_that_answer(small, tmp_path):
    given_parts = {
        "language": Part(ax.tasks.MaskedLanguage(), [Source(TASKS / "passages.txt", DEV[:9])]),
        "topics": parts()["topics"],
    }
    metric = "language.perplexity"
    together(small, given_parts, run=tmp_path / "run", metric=metric, epochs=3, lr=1e-2)
    entries = read_log(read_run(tmp_path / "run"), "epoch")
    assert all(entry["mean"] == entry["topics.accuracy"] for entry in entries)
    best = read_run(tmp_path / "run").best
    assert best[metric] == min(entry[metric] for entry in entries)
    alone = {"a": given_parts["language"], "b": given_parts["language"]}
    together(small, alone, run=tmp_path / "texts", epochs=1)
    assert read_run(tmp_path / "texts").settings["metric"] == "dev_loss"


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, FSDP], ids=["ddp", "fsdp"])
def test_two_processes_and_micro_batches_train_alike(small_folders, tmp_path, environment):
    options = {"together": True, "batch_size": 9, "accumulate": 4, "epochs": 1}
    one = alone(small_folders["bert"], options)
    said = ranks(2, small_folders["bert"], tmp_path / "meeting", options, **environment)
    for answer in said:
        same_said(answer, one)
    assert (said[0]["parts"][1] < 1) == bool(environment)


def test_an_interrupted_run_goes_on_to_the_same_weights(small, tmp_path, monkeypatch):
    whole, original, begun = together(small), MixedPlan.steps, []

    def steps(self, epoch):
        for step in original(self, epoch):
            begun.append(step)
            if len(begun) == 8:
                os.kill(os.getpid(), signal.SIGTERM)
            yield step

    with monkeypatch.context() as patch, pytest.raises(TrainingInterrupted):
        patch.setattr(MixedPlan, "steps", steps)
        together(small, run=tmp_path / "run")
    with pytest.raises(OptionError, match=r"temperature was 2\.0 and is 3\.0"):
        together(small, run=tmp_path / "run", resume=True, temperature=3.0)
    cut = together(small, run=tmp_path / "run", resume=True)
    for name, adapter in cut.items():
        wanted = whole[name].weights()
        assert all(torch.equal(w, wanted[key]) for key, w in adapter.weights().items())


@pytest.mark.parametrize(
    ("cuts", "devs"),
    [
        ([TOPICS[:60]], [DEV]),
        ([TOPICS[:25], TOPICS[25:60]], [DEV[:30], DEV[30:]]),
        ([TOPICS[:25], TOPICS[25:60]], [DEV, None]),
    ],
)
def test_heads_of_classification_may_begin_with_the_probes(small, cuts, devs):
    sources = [Source(*both) for both in zip(cuts, devs, ("sw", "en"), strict=False)]
    topics = Part(ax.tasks.Classification(), sources)
    given = {"names": parts()["names"], "topics": topics}
    first = together(small, given, epochs=1, lr=1e-9, probe_first=True, fast=False)
    task = ax.tasks.Classification()
    probe = ax.train(small, task, None, name="probe", train=TOPICS[:60], dev=DEV, batch_size=12)
    torch.testing.assert_close(first["topics"].head.weight, probe.head.weight)
    plain = together(small, given, epochs=1, lr=1e-9)
    torch.testing.assert_close(first["names"].head.weight, plain["names"].head.weight)


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"sampling": "often"}, OptionError, "sampling='often' is none of proportional"),
        ({"temperature": 0}, OptionError, "temperature=0 must be a number above 0"),
        ({"passes": -1, "sampling": "unimax"}, OptionError, "passes=-1"),
        ({"metric": "accuracy"}, OptionError, "topics.accuracy"),
        ({"metric": "names.macro_f1"}, OptionError, "names.f1"),
        (
            {"probe_first": True, "given": {"a": parts()["names"], "b": parts()["names"]}},
            OptionError,
            "none of these tasks is one",
        ),
        ({"config": LoraConfig(use_dora=True, target_modules="all-linear")}, OptionError, "dora"),
        ({"config": None}, OptionError, "probe can't be shared"),
        ({"given": parts(dev=False), "patience": 2}, OptionError, "patience=2 .*no dev set"),
        ({"given": {"a": parts()["topics"]}}, OptionError, "two sources or more"),
        ({"given": {"a.b": parts()["topics"], "c": parts()["names"]}}, OptionError, "a.b"),
        (
            {
                "given": {
                    "a": parts()["topics"],
                    "b": Part(ax.tasks.TokenClassification(), [Source(SAMPLE / "none.conll")]),
                }
            },
            DataError,
            r"none\.conll",
        ),
        (
            {"given": {"a": parts()["topics"], "b": Part(ax.tasks.Classification(), [Source([])])}},
            OptionError,
            "b: There are no examples",
        ),
    ],
)
def test_what_is_wrong_is_said_before_any_training(small, change, error, named):
    with pytest.raises(error, match=named):
        together(small, **change)


def test_a_part_says_what_it_lacks():
    task = ax.tasks.Classification()
    with pytest.raises(OptionError, match="no source"):
        Part(task, [])
    with pytest.raises(OptionError, match="a language of its own"):
        Part(task, [Source(TOPICS, language="sw"), Source(TOPICS, language="sw")])
    with pytest.raises(OptionError, match="weight=0"):
        Part(task, [Source(TOPICS)], weight=0)


def test_a_training_that_diverges_says_so_and_what_it_has_saves_each_task(small, trained, tmp_path):
    said = r"\(epoch 1, topics rows \d+.*, names rows \d+.*No epoch was finished"
    with pytest.raises(TrainingDiverged, match=said):
        together(small, lr=1e28, clip=0.0)
    Shared("sw", trained).save(tmp_path)  # what TrainingDiverged brings after an epoch
    for adapter in trained.values():
        again = ax.Adapter.load(tmp_path / adapter.name, small)
        assert torch.equal(again.head.weight, adapter.head.weight)
