"""Probes, and the heads that begin as a probe's."""

import numpy as np
import pytest
import torch

import adaptx as ax
from adaptx.data.records import Pair
from adaptx.errors import OptionError
from adaptx.training import probe
from tests.training.test_many import DEV, TRAIN, member
from tests.training.test_train import LORA, fit

STILL = {"epochs": 1, "lr": 1e-9, "probe_first": True}  # the head stays as it begins


@pytest.mark.parametrize("fast", [True, False])
def test_a_training_may_begin_with_the_probes_head(small, fast):
    wanted = fit(small, config=None)
    found = fit(small, fast=fast, **STILL)
    torch.testing.assert_close(found.head.weight, wanted.head.weight)
    scores = [a.facts.training["best"]["dev_loss"] for a in (found, wanted)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


def test_only_a_classification_may_begin_with_a_probes_head(small):
    pairs = [Pair(f"question {i}", f"answer {i}") for i in range(8)]
    wrong = "probe_first is for classification, not for retrieval"
    with pytest.raises(OptionError, match=wrong):
        ax.train(small, ax.tasks.Retrieval(), LORA, name="x", train=pairs, probe_first=True)
    asked = ax.Member(
        "x", LORA, train=pairs, task=ax.tasks.Retrieval(), settings={"probe_first": True}
    )
    with pytest.raises(OptionError, match=f"x: {wrong}"):
        ax.train_many(small, [asked])


def test_a_beginning_is_solved_on_some_rows_with_every_label(small, monkeypatch):
    """Seven labels, one of which stands at the end of train, once."""
    rows = [row for row in TRAIN if row.label != TRAIN[0].label] + [TRAIN[0]]
    seen = []

    def solved(adapter, train, dev, metric, seed):
        seen.append((train, dev))
        return original(adapter, train, dev, metric, seed)

    original = probe.fit_probe
    monkeypatch.setattr(probe, "fit_probe", solved)
    monkeypatch.setattr(probe, "FIRST_ROWS", 30)
    adapter = fit(small, train=rows, **STILL)
    ((states, targets), (dev_states, dev_targets)) = seen[0]
    assert states.shape == (30, small.hidden_size) and len(dev_states) == 30
    assert set(targets) == set(dev_targets) == set(range(7))
    # A row's states are its own.
    wanted = small.embed([row.text for row in rows])
    nearest = np.linalg.norm(wanted[None] - states[:, None], axis=2).argmin(1)
    assert len(set(nearest)) == 30
    labels = adapter.task.targets(rows)
    assert (labels[nearest] == targets).all()


def test_a_label_with_one_row_leaves_the_strength_to_the_others(small):
    """Without dev it is chosen by cross-validation, where that row can't be held out."""
    rows = [row for row in TRAIN if row.label != TRAIN[0].label]
    wanted, found = (
        fit(small, config=None, train=given, dev=None).facts.training["history"][0]["strength"]
        for given in (rows, [*rows, TRAIN[0]])
    )
    assert found == wanted > probe.STRENGTHS[0]


def test_labels_with_too_few_rows_to_choose_by_are_learnt_all_the_same(small):
    """Without dev, and with one row of each label but one: nothing can be held out."""
    ones = list({row.label: row for row in TRAIN}.values())
    rows = [*ones, next(row for row in TRAIN if row.label == ones[0].label and row != ones[0])]
    alone = fit(small, config=None, train=rows, dev=None)
    assert alone.facts.training["history"][0]["strength"] == probe.STRENGTHS[0]
    assert len(set(alone.head.bias.tolist())) == len(ones)


def test_members_with_the_same_rows_have_one_solution(small, monkeypatch):
    solved = []

    def solve(jobs, **options):
        solved.append(jobs[0].adapter.name)
        return original(jobs, **options)

    original = probe.solve_head
    monkeypatch.setattr(probe, "solve_head", solve)
    members = [
        member("one", **STILL),
        member("again", **STILL | {"lr": 1e-8}),
        member("other rows", train=TRAIN[:100], **STILL),
        member("other dev", dev=DEV[:20], **STILL),
        member("random", **STILL | {"probe_first": False}),
    ]
    found = ax.train_many(small, members).adapters
    assert solved == ["one", "other rows", "other dev"]
    torch.testing.assert_close(found["one"].head.weight, found["again"].head.weight)
    assert not torch.allclose(found["one"].head.weight, found["other rows"].head.weight)
