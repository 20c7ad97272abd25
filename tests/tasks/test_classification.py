import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptx.data.read import Example
from adaptx.errors import DataError, FolderError, OptionError
from adaptx.tasks import TASKS, Classification, Prediction, task_from_json

seeded = settings(derandomize=True, deadline=None, max_examples=60)
SEVEN = ("a", "b", "c", "d", "e", "f", "g")


def rows(*labels, path="train.tsv"):
    return [Example(f"text {i}", label, path, i + 2) for i, label in enumerate(labels)]


def softmax(logits):
    powers = [math.exp(value - max(logits)) for value in logits]
    return [power / math.fsum(powers) for power in powers]


def test_fit_takes_the_labels_of_train_sorted():
    task = Classification(pooling="cls").fit(rows("sports", "health", "sports", "politics"))
    assert task == Classification(("health", "politics", "sports"), "cls")
    assert task.outputs == 3


def test_fit_keeps_the_labels_that_were_given_in_their_order():
    given_ = Classification(["sports", "health", "travel"])
    assert given_.fit(rows("health", "sports"), rows("sports")) == given_
    assert given_.labels == ("sports", "health", "travel")


def test_fit_leaves_the_task_without_labels_as_it_was():
    task = Classification()
    task.fit(rows("a", "b"))
    assert task == Classification()


def test_one_class_only_is_refused_with_its_name():
    with pytest.raises(DataError) as caught:
        Classification().fit(rows("sports", "sports"))
    assert str(caught.value).startswith("train.tsv: there is one class only, 'sports'")
    assert (caught.value.path, caught.value.line) == ("train.tsv", None)


def test_one_class_only_is_refused_whatever_labels_were_given():
    with pytest.raises(DataError, match="there is one class only, 'sports'"):
        Classification(["health", "sports"]).fit(rows("sports", "sports"))


@pytest.mark.parametrize("labels", [(), ("health", "sports")])
def test_training_data_without_rows_is_refused(labels):
    with pytest.raises(DataError):
        Classification(labels).fit([])


def test_an_unlabelled_row_names_its_line():
    with pytest.raises(DataError) as caught:
        Classification().fit(rows("sports", None, "health"))
    assert (caught.value.path, caught.value.line) == ("train.tsv", 3)
    assert "unknown label None; allowed: health, sports" in str(caught.value)


def test_an_unknown_label_in_train_names_its_line_and_the_allowed_ones():
    with pytest.raises(DataError) as caught:
        Classification(["health", "sports"]).fit(rows("sports", "health", "sprots"))
    assert str(caught.value) == (
        "train.tsv, line 4: unknown label 'sprots'; allowed: health, sports."
    )
    assert (caught.value.path, caught.value.line) == ("train.tsv", 4)


def test_an_unknown_label_in_dev_names_its_line_and_the_allowed_ones():
    with pytest.raises(DataError) as caught:
        Classification().fit(rows("sports", "health"), rows("sports", "travel", path="dev.tsv"))
    assert (caught.value.path, caught.value.line) == ("dev.tsv", 3)
    assert "'travel'" in str(caught.value) and "health, sports" in str(caught.value)


def test_a_dev_label_outside_the_given_ones_is_unknown():
    task = Classification(["health", "sports"])
    with pytest.raises(DataError) as caught:
        task.fit(rows("sports", "health"), rows("health", "sprots", path="dev.tsv"))
    assert str(caught.value) == (
        "dev.tsv, line 3: unknown label 'sprots'; allowed: health, sports."
    )


def test_a_dev_label_that_train_lacks_names_its_line_and_what_train_has():
    task = Classification(["health", "sports", "travel"])
    with pytest.raises(DataError) as caught:
        task.fit(rows("sports", "health"), rows("health", "sports", "travel", path="dev.tsv"))
    assert (caught.value.path, caught.value.line) == ("dev.tsv", 4)
    message = str(caught.value)
    assert "the label 'travel' stands in dev but not in train (which has health, sports)" in message


def test_targets_are_the_places_of_the_labels():
    targets = Classification(["sports", "health"]).targets(rows("health", "sports", "health"))
    assert targets.tolist() == [1, 0, 1]
    assert targets.dtype == np.int64
    assert Classification(["sports", "health"]).targets([]).shape == (0,)


def test_a_target_outside_the_labels_is_refused_even_without_a_file():
    with pytest.raises(DataError) as caught:
        Classification(["a", "b"]).targets([Example("text", "c")])
    assert str(caught.value) == "unknown label 'c'; allowed: a, b."
    assert (caught.value.path, caught.value.line) == (None, None)


def test_many_allowed_labels_are_shortened():
    task = Classification([f"intent{i:03}" for i in range(150)])
    with pytest.raises(DataError, match=r"intent000, intent001, .* … \(150 in all\)"):
        task.targets(rows("intent"))


def test_duplicate_labels_are_refused():
    with pytest.raises(OptionError, match=r"A label stands twice in labels=\['a', 'b', 'a'\]"):
        Classification(["a", "b", "a"])


@pytest.mark.parametrize("labels", [["a", ""], ["a", 7], ["a", None], [["a"], "b"]])
def test_labels_that_are_no_names_are_refused(labels):
    with pytest.raises(OptionError, match="must be names that aren't empty"):
        Classification(labels)


@pytest.mark.parametrize("pooling", ["max", "", None, "MEAN"])
def test_an_unknown_pooling_lists_the_known_ones(pooling):
    with pytest.raises(OptionError) as caught:
        Classification(["a", "b"], pooling)
    assert str(caught.value) == f"pooling={pooling!r} is none of mean, cls."


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_task_comes_back_from_json(pooling):
    task = Classification(["sayansi/teknolojia", "ሰላም", "it's"], pooling)
    written = json.loads(json.dumps(task.to_json()))
    assert written == {
        "kind": "classification",
        "labels": ["sayansi/teknolojia", "ሰላም", "it's"],
        "pooling": pooling,
    }
    assert task_from_json(written) == task
    assert written["kind"] == "classification"


def test_every_task_writes_the_kind_under_which_it_is_listed():
    assert {kind: task.kind for kind, task in TASKS.items()} == {kind: kind for kind in TASKS}


@pytest.mark.parametrize("kind", ["regression", None, "", 7, [], {}])
def test_an_unknown_kind_is_a_folder_error_that_lists_the_known(kind):
    with pytest.raises(FolderError) as caught:
        task_from_json({"kind": kind, "labels": ["a", "b"]})
    assert f"The task {kind!r} is none that this adaptx knows: classification" in str(caught.value)


def test_a_missing_kind_is_a_folder_error():
    with pytest.raises(FolderError, match="The task None is none that this adaptx knows"):
        task_from_json({"labels": ["a", "b"]})


@pytest.mark.parametrize(
    "options",
    [
        {"labels": ["a", "b"], "code": "import os"},
        {"labels": ["a", "a"]},
        {"labels": ["a", 1]},
        {"labels": ["a", "b"], "pooling": "max"},
        {"labels": 5},
        {"labels": None},
    ],
)
def test_wrong_task_options_are_a_folder_error(options):
    with pytest.raises(FolderError, match="The task 'classification' is written down wrongly"):
        task_from_json({"kind": "classification", **options})


@seeded
@given(
    st.lists(
        st.lists(st.floats(-1e4, 1e4, width=32), min_size=7, max_size=7), min_size=1, max_size=5
    )
)
def test_decode_is_the_softmax_of_the_plain_formula(logits):
    for row, found in zip(
        logits, Classification(SEVEN).decode(np.array(logits, np.float32)), strict=True
    ):
        wanted = softmax(row)
        assert list(found.scores) == list(SEVEN)
        assert list(found.scores.values()) == pytest.approx(wanted, rel=1e-4, abs=1e-12)
        assert found.score == max(found.scores.values()) == found.scores[found.label]
        assert math.fsum(found.scores.values()) == pytest.approx(1, abs=1e-12)


def test_extreme_logits_give_no_nan():
    task = Classification(["a", "b", "c"])
    found = task.decode(np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4]], np.float32))
    assert found[0] == Prediction("a", 1.0, {"a": 1.0, "b": 0.0, "c": 0.0})
    assert found[1] == Prediction("a", 1 / 3, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})


def test_no_rows_decode_to_no_predictions():
    assert Classification(["a", "b"]).decode(np.zeros((0, 2), np.float32)) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_losses_are_minus_the_log_of_the_targets_softmax(dtype):
    generator = torch.Generator().manual_seed(3)
    logits = (torch.randn(9, 5, generator=generator) * 4).to(dtype)
    targets = torch.randint(0, 5, (9,), generator=generator)
    found = Classification(["a", "b", "c", "d", "e"]).losses(logits, targets)
    wanted = [
        -math.log(softmax(row)[target])
        for row, target in zip(logits.double().tolist(), targets.tolist(), strict=True)
    ]
    assert (found.dtype, found.shape) == (torch.float32, (9,))
    torch.testing.assert_close(found.double(), torch.tensor(wanted).double(), rtol=1e-5, atol=1e-6)


def test_losses_of_extreme_logits_are_finite():
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    losses = Classification(["a", "b"]).losses(logits, torch.tensor([0, 0]))
    assert losses.tolist() == [0.0, 2e4]
    losses.sum().backward()
    assert logits.grad.tolist() == [[0.0, 0.0], [-1.0, 1.0]]


def test_labels_given_as_one_text_are_refused():
    with pytest.raises(OptionError, match="list of names"):
        Classification("abc")
