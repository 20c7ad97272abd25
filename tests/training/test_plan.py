import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptx.training.plan import Plan

sizes = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 60),
        "batch_size": st.integers(1, 20),
        "accumulate": st.integers(1, 5),
        "seed": st.integers(0, 3),
    }
)


@settings(deadline=None, derandomize=True)
@given(
    sizes=sizes, processes=st.integers(1, 5), epoch=st.integers(1, 3), with_lengths=st.booleans()
)
def test_any_number_of_processes_shares_the_same_global_batches(
    sizes, processes, epoch, with_lengths
):
    lengths = np.random.default_rng(5).integers(1, 40, sizes["rows"])
    sizes = sizes | ({"lengths": lengths} if with_lengths else {})
    alone = [
        sorted(np.concatenate(step.micro_batches).tolist())
        for step in Plan(**{**sizes, "accumulate": 1}).steps(epoch)
    ]
    plans = [Plan(**sizes, processes=processes, process=p) for p in range(processes)]
    shared = []
    for steps in zip(*(plan.steps(epoch) for plan in plans), strict=True):
        assert {len(step.micro_batches) for step in steps} == {sizes["accumulate"]}
        rows = np.concatenate([rows for step in steps for rows in step.micro_batches])
        assert {step.rows for step in steps} == {len(rows)}
        shared.append(sorted(rows.tolist()))
    assert shared == alone
    assert sorted(row for rows in shared for row in rows) == list(range(sizes["rows"]))
    assert len(shared) == len(plans[0])


@settings(deadline=None, derandomize=True)
@given(sizes=sizes, processes=st.integers(1, 5), epoch=st.integers(1, 3), spare=st.integers(0, 200))
def test_no_micro_batch_has_more_tokens_than_it_may(sizes, processes, epoch, spare):
    lengths = np.random.default_rng(sizes["seed"]).integers(1, 40, sizes["rows"])
    most = int(lengths.max()) + spare
    given = sizes | {"lengths": lengths}
    plain = Plan(**given).steps(epoch)
    plans = [
        Plan(**given, processes=processes, process=p, micro_tokens=most) for p in range(processes)
    ]
    for one, *steps in zip(plain, *(plan.steps(epoch) for plan in plans), strict=True):
        (parts,) = {len(step.micro_batches) for step in steps}  # as many on each process
        assert sizes["accumulate"] <= parts <= max(sizes["accumulate"], one.rows)
        each = [rows for step in steps for rows in step.micro_batches]
        assert all(lengths[rows].max() * len(rows) <= most for rows in each if len(rows))
        assert sorted(np.concatenate(each).tolist()) == sorted(one.all_rows.tolist())
        fits = [lengths[r[p::processes]] for r in one.micro_batches for p in range(processes)]
        if all(its.max() * len(its) <= most for its in fits if len(its)):
            assert parts == sizes["accumulate"]  # no more than it takes


def test_rows_of_like_length_go_together():
    lengths = np.random.default_rng(0).integers(1, 100, 500)
    steps = list(Plan(500, 16, lengths=lengths).steps(1))
    padded = sum(step.rows * lengths[np.concatenate(step.micro_batches)].max() for step in steps)
    assert padded < 1.1 * lengths.sum()
    means = [lengths[np.concatenate(step.micro_batches)].mean() for step in steps]
    assert means != sorted(means)  # the batches are shuffled


def test_epochs_and_seeds_shuffle_differently():
    def order(seed, epoch):
        steps = Plan(50, 50, seed=seed).steps(epoch)
        return next(steps).micro_batches[0].tolist()

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)
