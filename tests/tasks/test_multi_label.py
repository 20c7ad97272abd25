import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from adaptx.data.large import open_records
from adaptx.data.records import Labelled
from adaptx.errors import DataError, OptionError
from adaptx.evaluation.metrics import tally_by_label, task_scores
from adaptx.tasks import MultiLabel, task_from_json
from adaptx.tasks.multi_label import Labels

seeded = settings(derandomize=True, deadline=None, max_examples=60)
TASK = MultiLabel(("a", "b", "c"))
SETS = st.lists(st.tuples(*[st.sets(st.sampled_from("abc"))] * 2), min_size=1, max_size=12)


def test_fit_and_what_it_refuses():
    rows = [Labelled("x", ("b", "a")), Labelled("y", ("c",))]
    assert MultiLabel().fit(rows) == TASK and task_from_json(TASK.to_json()) == TASK
    with pytest.raises(DataError, match="unknown label 'd'; allowed: a, b, c"):
        TASK.fit(rows, [Labelled("z", ("d",), "dev.tsv", 4)])
    with pytest.raises(OptionError, match="threshold"):
        MultiLabel(threshold=1.0)


@pytest.mark.parametrize("ending", ["tsv", "jsonl"])
def test_files_have_lists_or_names_with_bars(tmp_path, ending):
    path = tmp_path / f"x.{ending}"
    rows = {
        "tsv": "text\tlabels\nhabari\ta|b\nnjema\tc\n",
        "jsonl": '{"text": "habari", "labels": ["a", "b"]}\n{"text": "njema", "labels": "c"}\n',
    }
    path.write_text(rows[ending])
    found = open_records(path, "multi-label")
    assert [(row.text, row.names) for row in found] == [("habari", ("a", "b")), ("njema", ("c",))]


@pytest.mark.parametrize(
    ("labels", "said"), [("[]", "no label"), ('["a", "a"]', "stands twice"), ("null", "label")]
)
def test_a_row_without_labels_is_refused_with_its_line(tmp_path, labels, said):
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"text": "x", "labels": ["a"]}}\n{{"text": "y", "labels": {labels}}}\n')
    with pytest.raises(DataError, match=rf"x\.jsonl, line 2.*{said}"):
        open_records(path, "multi-label")


@seeded
@given(st.lists(st.floats(-20, 20), min_size=3, max_size=3))
def test_an_answer_is_each_label_by_itself(logits):
    found = TASK.answer("x", [], [np.array(logits, np.float32)])
    for label, logit in zip("abc", np.array(logits, np.float32), strict=True):
        assert found.scores[label] == pytest.approx(float(torch.sigmoid(torch.tensor(logit))))
        assert (label in found.labels) == (found.scores[label] >= 0.5)


@seeded
@given(SETS)
def test_scores_are_scikit_learns(pairs):
    records = [Labelled("x", tuple(gold)) for gold, _ in pairs]
    answers = [Labels(tuple(said), {}) for _, said in pairs]
    gold, said = (np.array([[label in one[i] for label in "abc"] for one in pairs]) for i in (0, 1))
    found = task_scores(TASK, records, answers)
    for name in ("micro", "macro"):
        wanted = f1_score(gold, said, average=name, zero_division=0)
        assert found[f"{name}_f1"] == pytest.approx(wanted)
    assert found["accuracy"] == pytest.approx(accuracy_score(gold, said))
    each = f1_score(gold, said, average=None, zero_division=0)
    for label, score in zip("abc", each, strict=True):
        above, below = tally_by_label(TASK, records, answers)[label]["f1"]
        assert above.sum() / max(below.sum(), 1) == pytest.approx(score)


def test_losses_are_binary_cross_entropies():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    p = torch.sigmoid(logits)
    wanted = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean(1)
    torch.testing.assert_close(TASK.losses(logits, targets), wanted)
