"""Many threads ask while others add and remove: no answer ever changes."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from adaptx.errors import OptionError
from adaptx.runtime import Runtime
from tests.runtime.conftest import TEXTS, acting
from tests.runtime.test_pool import check_sound

READERS, ROUNDS = 8, 25
NAMES = ["sw-topics", "yo-moods", "wide", "probe", "bare", "imported", None]
COMING = [f"more-{i}" for i in range(10)]


@pytest.fixture(scope="module")
def oracle(int8, others):
    """Every adapter's vectors, computed alone, a row at a time."""
    with Runtime.open(int8, threads=1, library=others) as runtime:
        return {
            name: np.concatenate([runtime.embed([text], name) for text in TEXTS])
            for name in (*NAMES, *COMING)
        }


def asked(random, names):
    """Some texts, by place, and an adapter for each."""
    places = random.integers(0, len(TEXTS), random.integers(1, 12))
    return places, [names[i] for i in random.integers(0, len(names), len(places))]


def check(runtime, oracle, places, names):
    found = runtime.embed([TEXTS[i] for i in places], names)
    for place, name, vector in zip(places, names, found, strict=True):
        assert np.array_equal(vector, oracle[name][place]), name


def test_no_answer_changes_while_adapters_come_and_go(int8, others, oracle):
    start, done = threading.Barrier(READERS + 1), threading.Event()
    with Runtime.open(int8, threads=2, slots=3) as runtime:
        wanted = {name: runtime.predict(TEXTS, name) for name in NAMES if name != "bare" and name}

        def read(seed):
            random = np.random.default_rng(seed)
            start.wait(60)
            for i in range(100 * ROUNDS):
                if i >= ROUNDS and done.is_set():
                    break
                check(runtime, oracle, *asked(random, NAMES))
                name = list(wanted)[seed % len(wanted)]
                assert runtime.predict(TEXTS, name) == wanted[name]
                coming = COMING[int(random.integers(len(COMING)))]
                try:  # it comes and goes: its own answer, or none
                    check(runtime, oracle, [0, 3], [coming, coming])
                except OptionError as error:
                    assert f"no adapter {coming!r}" in str(error)
                assert {info.name for info in runtime.adapters()} >= set(wanted)

        def churn():
            start.wait(60)
            for i in range(ROUNDS // 2):
                there = COMING[i % 3 :: 3]
                for name in there:
                    runtime.add(others / name, check=i % 10 == 0)
                    check(runtime, oracle, [1, 2], [name, None])  # visible at once
                for name in there:
                    runtime.remove(name)
                    with pytest.raises(OptionError, match="no adapter"):
                        runtime.embed(["x"], name)

        with ThreadPoolExecutor(READERS + 1) as threads:
            churning = threads.submit(churn)
            readers = [threads.submit(read, seed) for seed in range(READERS)]
            try:
                churning.result(120)
            finally:
                done.set()
            for reader in readers:
                reader.result(120)
        assert {info.name for info in runtime.adapters()} == {name for name in NAMES if name}
        check_sound(runtime.pool)


def test_no_answer_changes_while_the_pool_pages(int8, others, oracle):
    start = threading.Barrier(READERS)
    with Runtime.open(int8, threads=2, slots=3, library=others, max_resident=3) as runtime:

        def read(seed):
            random = np.random.default_rng(seed)
            start.wait(60)
            for _ in range(ROUNDS):
                check(runtime, oracle, *asked(random, [*NAMES, *COMING]))

        with ThreadPoolExecutor(READERS) as threads:
            for reader in [threads.submit(read, seed) for seed in range(READERS)]:
                reader.result(120)
        assert runtime.counts()["evictions"] > 10
        check_sound(runtime.pool)


def test_a_removed_adapter_answers_those_who_asked_before_and_keeps_its_slot(
    int8, others, oracle, encoder, tmp_path
):
    with Runtime.open(int8, threads=1, slots=2) as runtime:
        runtime.add(others / "more-1")
        with runtime.pool.lease(["more-1"]) as held:  # as a run holds it
            place = held["more-1"].place
            before = {name: rows[place.slot].copy() for name, rows in place.chunk.arrays.items()}
            runtime.remove("more-1")
            with pytest.raises(OptionError, match="no adapter 'more-1'"):
                runtime.embed(["x"], "more-1")
            for i in (3, 5, 7):  # of its rank: they would take its slot if it were free
                runtime.add(others / f"more-{i}")
            assert place.slot not in place.chunk.free
            for name, rows in before.items():
                assert np.array_equal(place.chunk.arrays[name][place.slot], rows)
            ids = runtime.text.ids(["query: " + text for text in TEXTS])
            found = runtime._forward.states(ids, [held["more-1"]] * len(ids))
            assert np.array_equal(np.stack(found), oracle["more-1"])
        assert place.slot in place.chunk.free
        other = acting(encoder, "more-1", 77, 8, language="xh")  # another of its name
        other.save(tmp_path / "again")
        runtime.add(tmp_path / "again")
        assert not place.chunk.free
        assert not np.array_equal(runtime.embed(TEXTS, "more-1"), oracle["more-1"])
        check(runtime, oracle, [0, 1, 2], ["more-3", "more-5", "more-7"])


def test_one_name_added_by_many_at_once_is_added_once(int8, others, oracle):
    start = threading.Barrier(READERS)
    with Runtime.open(int8, threads=1) as runtime:

        def add(_):
            start.wait(60)
            try:
                return runtime.add(others / "more-2", check=False)
            except OptionError as error:
                assert "'more-2' already" in str(error)

        with ThreadPoolExecutor(READERS) as threads:
            made = [info for info in threads.map(add, range(READERS)) if info]
        assert len(made) == 1
        check(runtime, oracle, [4, 5], ["more-2", "more-2"])
        check_sound(runtime.pool)
