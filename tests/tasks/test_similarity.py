import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr

from adaptx.data.large import open_records
from adaptx.data.records import Pair
from adaptx.errors import DataError, OptionError
from adaptx.evaluation.metrics import task_scores
from adaptx.evaluation.report import AnswersReport
from adaptx.tasks import Similarity, task_from_json
from adaptx.tasks.similarity import Score

seeded = settings(derandomize=True, deadline=None, max_examples=40)
NUMBERS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=20)


def rows(*scores):
    return [Pair("a", "b", str(score), "x.tsv", i + 2) for i, score in enumerate(scores)]


def test_fit_takes_the_scale_of_the_scores():
    task = Similarity().fit(rows(0, 2.5, 5))
    assert task.mean == 2.5 and task.scale == pytest.approx(np.std([0, 2.5, 5]))
    assert task_from_json(task.to_json()) == task
    targets = task.targets(rows(0, 5))
    assert task.answer(("a", "b"), [], [targets[:1]]).score == pytest.approx(0, abs=1e-6)
    assert task.answer(("a", "b"), [], [targets[1:]]).score == pytest.approx(5, abs=1e-6)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ((1, "x"), "line 3: the score is 'x'"),
        (("nan", 1), "a number"),
        ((2, 2), "every score is 2"),
    ],
)
def test_scores_that_teach_nothing_are_refused(scores, said):
    with pytest.raises(DataError, match=said):
        Similarity().fit(rows(*scores))


@pytest.mark.parametrize("options", [{"scale": 0}, {"mean": float("nan")}, {"labels": ("a", "b")}])
def test_options_that_cant_be_are_refused(options):
    with pytest.raises(OptionError):
        Similarity(**options)


def test_a_table_has_a_score_and_two_files_have_none(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text("sentence1\tsentence2\tscore\na\tb\t3.5\n")
    assert open_records(path, "similarity") == [Pair("a", "b", "3.5", str(path), 2)]
    with pytest.raises(OptionError, match="no room for scores"):
        open_records(f"{path.with_suffix('.a')},{path.with_suffix('.b')}", "similarity")


def test_losses_are_squared_errors():
    outputs, targets = torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 3.5])
    torch.testing.assert_close(Similarity().losses(outputs, targets), torch.tensor([1.0, 0.25]))


@seeded
@given(NUMBERS.filter(lambda n: len({a for a, _ in n}) > 1 and len({b for _, b in n}) > 1))
def test_scores_are_scipys(numbers):
    records = rows(*(a for a, _ in numbers))
    found = task_scores(Similarity(), records, [Score(float(b)) for _, b in numbers])
    gold, said = zip(*numbers, strict=True)
    assert found["spearman"] == pytest.approx(spearmanr(gold, said).statistic)
    assert found["pearson"] == pytest.approx(pearsonr(gold, said).statistic)


def test_a_difference_has_the_interval_of_its_rows():
    generator = np.random.default_rng(0)
    gold = generator.normal(size=200)
    near, far = gold + 0.1 * generator.normal(size=200), gold + generator.normal(size=200)
    records = rows(*gold)
    good, bad = (
        AnswersReport(Similarity(), records, [Score(float(x)) for x in said])
        for said in (near, far)
    )
    found = good.less(bad, "spearman")
    assert found.difference == pytest.approx(good.scores["spearman"] - bad.scores["spearman"])
    assert 0 < found.low < found.difference < found.high and found.not_above_zero == 0
    assert good.less(good, "pearson").high == 0
    low, high = bad.interval
    assert low < bad.scores["spearman"] < high
