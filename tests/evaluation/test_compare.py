import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from adaptx.errors import OptionError
from adaptx.evaluation.compare import paired_bootstrap
from adaptx.tasks.classification import METRICS

ORACLE = {
    "accuracy": accuracy_score,
    "macro_f1": lambda y, x: f1_score(y, x, average="macro", zero_division=0),
    "weighted_f1": lambda y, x: f1_score(y, x, average="weighted", zero_division=0),
}


def answers(generator, targets, right, labels):
    guessed = generator.integers(0, labels, len(targets))
    return np.where(generator.random(len(targets)) < right, targets, guessed)


@pytest.fixture(scope="module")
def rows():
    """Labels of 150 rows, of which the last is rare, and the answers of two systems."""
    generator = np.random.default_rng(1)
    targets = generator.choice(4, 150, p=[0.4, 0.3, 0.27, 0.03])
    return targets, answers(generator, targets, 0.7, 4), answers(generator, targets, 0.55, 4)


@pytest.mark.parametrize("metric", METRICS)
def test_it_agrees_with_resampling_the_rows_one_by_one(rows, metric):
    targets, a, b = rows
    generator, score = np.random.default_rng(2), ORACLE[metric]
    wanted = []
    for _ in range(400):
        drawn = generator.integers(0, len(targets), len(targets))
        wanted.append(score(targets[drawn], a[drawn]) - score(targets[drawn], b[drawn]))
    found = paired_bootstrap(targets, a, b, metric=metric)
    assert found.difference == pytest.approx(score(targets, a) - score(targets, b))
    # The standard error of an oracle's 2.5% quantile is about 0.13 of the spread.
    near = 0.4 * np.std(wanted)
    assert found.low == pytest.approx(np.quantile(wanted, 0.025), abs=near)
    assert found.high == pytest.approx(np.quantile(wanted, 0.975), abs=near)
    assert found.not_above_zero == pytest.approx(np.mean(np.array(wanted) <= 0), abs=0.04)
    assert (found.rows, found.resamples) == (150, 10_000)


@pytest.mark.parametrize(("size", "labels"), [(150, 4), (3000, 20)])
def test_it_agrees_with_scipy(size, labels):
    """The larger has so many kinds of rows that the resamples go through in parts."""
    generator = np.random.default_rng(3)
    targets = generator.integers(0, labels, size)
    a, b = (answers(generator, targets, right, labels) for right in (0.7, 0.6))
    wanted = scipy.stats.bootstrap(
        ((a == targets).astype(float), (b == targets).astype(float)),
        lambda x, y, axis: x.mean(axis) - y.mean(axis),
        paired=True,
        method="percentile",
        n_resamples=4_000,
        batch=500,
        rng=generator,
    )
    found = paired_bootstrap(targets, a, b)
    near = 0.2 * wanted.standard_error
    assert found.low == pytest.approx(wanted.confidence_interval.low, abs=near)
    assert found.high == pytest.approx(wanted.confidence_interval.high, abs=near)
    assert found.resamples == 10_000


ROWS = st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=30)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(ROWS, st.sampled_from(METRICS))
def test_equal_answers_differ_by_nothing(pairs, metric):
    targets, a, _ = np.array(pairs).T
    found = paired_bootstrap(targets, a, a, metric=metric, resamples=50)
    assert (found.difference, found.low, found.high, found.not_above_zero) == (0, 0, 0, 1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(ROWS, st.sampled_from(METRICS))
def test_the_difference_is_scikit_learns_and_changes_sign_with_the_order(pairs, metric):
    targets, a, b = np.array(pairs).T
    one = paired_bootstrap(targets, a, b, metric=metric, resamples=50)
    two = paired_bootstrap(targets, b, a, metric=metric, resamples=50)
    score = ORACLE[metric]
    assert one.difference == pytest.approx(score(targets, a) - score(targets, b), abs=1e-12)
    assert two.difference == pytest.approx(-one.difference, abs=1e-12)
    assert one.low <= one.high


@settings(max_examples=40, deadline=None, derandomize=True)
@given(ROWS, st.sampled_from(METRICS), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(pairs, metric, random):
    shuffled = random.sample(pairs, len(pairs))
    one, two = (
        paired_bootstrap(
            *np.array(rows).T, metric=metric, resamples=50, groups=np.array(rows)[:, 0]
        )
        for rows in (pairs, shuffled)
    )
    assert one == two


def test_the_interval_turns_round_with_the_order_of_the_systems(rows):
    targets, a, b = rows
    one, two = paired_bootstrap(targets, a, b), paired_bootstrap(targets, b, a)
    assert two.low == pytest.approx(-one.high, abs=0.01)
    assert two.high == pytest.approx(-one.low, abs=0.01)
    assert one.not_above_zero + two.not_above_zero == pytest.approx(1, abs=0.03)


def test_names_of_labels_serve_as_well_as_numbers(rows):
    names = np.array(["afya", "michezo", "siasa", "ስፖርት"])
    found = paired_bootstrap(*(names[part] for part in rows), metric="macro_f1")
    wanted = paired_bootstrap(*rows, metric="macro_f1")
    assert found.difference == pytest.approx(wanted.difference)
    assert found.low == pytest.approx(wanted.low, abs=0.01)


def test_rows_are_drawn_within_their_group():
    """In each language all rows are alike: only a draw across languages can move anything."""
    targets, a, b = np.zeros(40, int), np.repeat([0, 1], 20), np.repeat([1, 1], 20)
    within = paired_bootstrap(targets, a, b, groups=["sw"] * 20 + ["en"] * 20)
    assert (within.low, within.high) == (0.5, 0.5)
    across = paired_bootstrap(targets, a, b)
    assert across.low < 0.4 < 0.6 < across.high


def test_a_systems_seeds_are_averaged(rows):
    targets, a, b = rows
    generator = np.random.default_rng(4)
    seeds = np.stack([a, answers(generator, targets, 0.8, 4), answers(generator, targets, 0.6, 4)])
    for metric in METRICS:
        single = [paired_bootstrap(targets, one, b, metric=metric).difference for one in seeds]
        found = paired_bootstrap(targets, seeds, b, metric=metric)
        assert found.difference == pytest.approx(np.mean(single))
    assert paired_bootstrap(targets, [a, a], b) == paired_bootstrap(targets, a, b)


def test_the_seed_decides(rows):
    first = paired_bootstrap(*rows, seed=1)
    assert first == paired_bootstrap(*rows, seed=1)
    assert first != paired_bootstrap(*rows, seed=2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"b": [0, 1]}, r"\[1, 2\] answers"),
        ({"targets": []}, r"\[0\] labels"),
        ({"groups": ["sw"]}, r"\[1\] groups"),
        ({"metric": "f1"}, "accuracy, macro_f1, weighted_f1"),
        ({"resamples": 0}, "resamples=0"),
    ],
)
def test_what_cant_be_compared_is_refused(change, said):
    options = {"targets": [0, 1, 1], "a": [0, 1, 0], "b": [0, 0, 0], **change}
    with pytest.raises(OptionError, match=said):
        paired_bootstrap(**options)
