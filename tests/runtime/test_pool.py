"""More adapters than fit: which ones stay, and what the pool counts."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from adaptx.adapters.folder import read_facts
from adaptx.errors import FolderError, OptionError
from adaptx.runtime import Runtime
from adaptx.runtime.bank import LiveBank
from adaptx.runtime.loading import load
from adaptx.runtime.pool import Pool, parse_limit
from tests.runtime.conftest import TEXTS, TOPICS, acting

MORE = [f"more-{i}" for i in range(40)]


def check_sound(pool):
    """Nobody holds a lease, and every slot is either free or of one resident adapter."""
    assert all(resident.leases == 0 for resident in pool.resident.values())
    places = [r.place for r in pool.resident.values() if r.place]
    for chunk in pool.bank.chunks:
        slots = [*chunk.free, *(place.slot for place in places if place.chunk is chunk)]
        assert sorted(slots) == list(range(1, pool.bank.slots + 1))


@pytest.fixture(scope="module")
def oracle(int8, others):
    """What each adapter of the library answers, all of them in the bank."""
    with Runtime.open(int8, threads=1, library=others) as runtime:
        return {name: runtime.embed(TEXTS[:3], name) for name in (*MORE, *runtime.facts.adapters)}


def opened(int8, others, **options):
    return Runtime.open(int8, threads=1, library=others, slots=3, **options)


@pytest.mark.parametrize(
    ("limit", "found"),
    [
        (None, (None, None)),
        (100, (100, None)),
        ("7", (7, None)),
        ("512MB", (None, 512 * 10**6)),
        ("1.5 gb", (None, 15 * 10**8)),
        ("64kb", (None, 64_000)),
    ],
)
def test_a_limit_is_a_count_or_a_size(limit, found):
    assert parse_limit(limit) == found


@pytest.mark.parametrize(
    "limit", [0, -1, "0", "x", "MB", "1TB", "1.5", "", 2.5, "²", "0MB", "0.0001KB"]
)
def test_another_limit_is_refused(limit):
    with pytest.raises(OptionError, match="max_resident"):
        parse_limit(limit)


def test_a_library_answers_right_whatever_was_let_go(int8, others, oracle):
    with opened(int8, others, max_resident=5) as runtime:
        assert len(runtime.adapters()) == 46 and runtime.counts()["resident"] == 0
        random = np.random.default_rng(0)
        for name in random.choice(MORE, 150):
            assert np.array_equal(runtime.embed(TEXTS[:3], str(name)), oracle[name])
            assert runtime.counts()["resident"] <= 5
        many = runtime.embed([TEXTS[0]] * 40, MORE)  # one request may need more than may stay
        assert np.array_equal(many, np.stack([oracle[name][0] for name in MORE]))
        counts = runtime.counts()
        assert counts["hits"] + counts["misses"] == 150 + 40
        assert counts["misses"] == counts["loads"] == counts["evictions"] + 5
        assert counts["load_seconds"] >= counts["slowest_load"] > 0
        assert (counts["known"], counts["resident"]) == (46, 5)
        check_sound(runtime.pool)


def test_the_least_recently_used_goes_first(int8, others):
    with opened(int8, others, max_resident=3) as runtime:
        for name in ("more-1", "more-2", "more-3", "more-1", "more-4"):
            runtime.embed(["x"], name)
        assert list(runtime.pool.resident) == ["more-3", "more-1", "more-4"]
        runtime.embed(["x", "y"], ["more-3", "more-5"])
        assert list(runtime.pool.resident) == ["more-4", "more-3", "more-5"]
        counts = runtime.counts()
        assert (counts["hits"], counts["misses"], counts["evictions"]) == (2, 5, 2)


def test_pinned_ones_stay(int8, others):
    with opened(int8, others, max_resident=2, pin=["more-7", "wide"]) as runtime:
        for name in MORE[:6]:
            runtime.embed(["x"], name)
        assert {"more-7", "wide"} == set(runtime.pool.resident)  # they alone fill the limit
        found = {info.name: info for info in runtime.adapters()}
        assert found["wide"].pinned and found["wide"].resident and not found["more-5"].resident
        runtime.remove("wide")
        runtime.embed(["x"], "more-0")
        assert set(runtime.pool.resident) == {"more-7", "more-0"}
        check_sound(runtime.pool)


def test_the_limit_may_be_of_bytes(int8, others, oracle):
    """Of what is in the bank, and of heads."""
    head = 4 * len(TOPICS) * (32 + 1)  # fp32 [3, 32] and [3]
    with opened(int8, others, max_resident="1MB") as runtime:
        runtime.embed(["x"], "more-1")
        one = runtime.counts()["resident_bytes"]  # of rank 8
        slot = sum(a[0].nbytes for a in runtime.pool.bank.chunks[0].arrays.values())
        assert one == slot + head
        runtime.embed(["x"], "probe")  # of rank 0, with two labels
        assert runtime.counts()["resident_bytes"] == one + 4 * 2 * (32 + 1)
    with opened(int8, others, max_resident=f"{3.5 * one / 1000}KB") as runtime:
        for name in MORE[1:20:2]:
            assert np.array_equal(runtime.embed(TEXTS[:3], name), oracle[name])
        counts = runtime.counts()
        assert (counts["resident"], counts["resident_bytes"]) == (3, 3 * one)
        runtime.embed(["x"] * 2, ["more-0", "more-2"])  # of rank 2, in a chunk of 4
        assert runtime.counts()["resident_bytes"] == 3 * slot + 2 * head  # these have none
        check_sound(runtime.pool)


def test_heads_alone_take_no_slot(int8, others):
    with opened(int8, others, max_resident=1) as runtime:
        runtime.predict(["x"], "probe")
        assert runtime.pool.resident["probe"].place is None and not runtime.pool.bank.chunks


def test_arrays_of_an_adapter_are_held_once_only(int8, others):
    with opened(int8, others) as runtime:
        assert all(not resident.loaded.sites for resident in runtime.pool.resident.values())


def test_concurrent_misses_load_once(int8, others, oracle):
    with opened(int8, others) as runtime:
        start = threading.Barrier(8)

        def ask(_):
            start.wait(30)
            return runtime.embed(TEXTS[:3], "more-9")

        with ThreadPoolExecutor(8) as threads:
            for found in threads.map(ask, range(8)):
                assert np.array_equal(found, oracle["more-9"])
        counts = runtime.counts()
        assert counts["loads"] == 1 and counts["hits"] + counts["misses"] == 8


@pytest.mark.parametrize("harm", ["vanished", "damaged", "renamed"])
def test_a_folder_gone_bad_is_named_and_the_pool_goes_on(int8, others, oracle, tmp_path, harm):
    library = shutil.copytree(others, tmp_path / "library")
    with opened(int8, library, max_resident=4) as runtime:
        if harm == "vanished":
            shutil.rmtree(library / "more-3")
        elif harm == "damaged":
            weights = library / "more-3" / "adapter_model.safetensors"
            content = bytearray(weights.read_bytes())
            content[-1] ^= 1
            weights.write_bytes(content)
        else:
            shutil.rmtree(library / "more-3")
            shutil.copytree(library / "more-5", library / "more-3")
        for _ in range(3):
            with pytest.raises(FolderError, match="more-3"):
                runtime.embed(TEXTS[:3], ["more-1", "more-3", "more-2"])
            check_sound(runtime.pool)
        for name in ("more-1", "more-2", "more-5", "wide"):
            assert np.array_equal(runtime.embed(TEXTS[:3], name), oracle[name])
        if harm == "vanished":
            shutil.copytree(others / "more-3", library / "more-3")
            assert np.array_equal(runtime.embed(TEXTS[:3], "more-3"), oracle["more-3"])
        check_sound(runtime.pool)


def test_a_library_with_a_name_twice_is_refused(int8, others, tmp_path):
    library = shutil.copytree(others, tmp_path / "library")
    shutil.copytree(library / "more-3", library / "again")
    with pytest.raises(OptionError, match=r"'more-3' already, from .*again"):
        opened(int8, library)


def test_a_library_may_be_the_folder_that_the_bundle_was_made_from(int8, others, tmp_path):
    library = shutil.copytree(int8 / "adapters", tmp_path / "library")
    shutil.copytree(others / "more-3", library / "more-3")
    with opened(int8, library, pin=["more-3"]) as runtime:
        known = runtime.pool.known
        assert set(known) == {*runtime.facts.adapters, "more-3"} and known["more-3"].pinned
        assert known["wide"].folder == int8 / "adapters" / "wide"


def test_a_librarys_broken_folders_are_left_out_with_one_warning(int8, others, oracle, tmp_path):
    library = shutil.copytree(others, tmp_path / "library")
    (library / "more-4" / "adaptx.json").write_text("{")
    manifest = json.loads((library / "more-5" / "adaptx.json").read_text())
    (library / "more-5" / "adaptx.json").write_text(json.dumps({**manifest, "kind": "merged"}))
    (library / "notes").mkdir()  # no folder of ours
    with pytest.warns(UserWarning) as caught, opened(int8, library) as runtime:
        assert len(runtime.pool.known) == 46 - 2
        assert np.array_equal(runtime.embed(TEXTS[:3], "more-3"), oracle["more-3"])
        with pytest.raises(OptionError, match="no adapter 'more-4'"):
            runtime.embed(TEXTS, "more-4")
    (warning,) = caught
    assert "no adapter in more-4, more-5, left out: " in str(warning.message)
    assert "more-4/adaptx.json can't be read as JSON" in str(warning.message)
    assert warning.filename == __file__


class Held:
    """Reads adapters as the runtime does, but not before it is let go."""

    def __init__(self, bundle):
        self.bundle, self.asked, self.go = bundle, threading.Event(), threading.Event()

    def __call__(self, folder):
        self.asked.set()
        assert self.go.wait(30)
        return load(folder, self.bundle)


def leased(pool, name):
    with pool.lease([name]) as held:
        return held[name].loaded.facts.language


@pytest.mark.parametrize("again", [False, True])
def test_an_adapter_that_is_removed_while_it_is_read(runtime, encoder, tmp_path, again):
    """Its reader gets the one of that name that there is now, or none; no slot is lost."""
    for language in ("sw", "yo"):
        acting(encoder, "x", 1, language=language).save(tmp_path / language)
    holding = Held(runtime.facts)
    pool = Pool(LiveBank(runtime.facts.banks, "float32", 2), holding, lambda name, place: None)
    pool.know(tmp_path / "sw", read_facts(tmp_path / "sw")[0])
    with ThreadPoolExecutor(1) as threads:
        reader = threads.submit(leased, pool, "x")
        assert holding.asked.wait(30)
        pool.forget("x")
        if again:
            pool.know(tmp_path / "yo", read_facts(tmp_path / "yo")[0])
        holding.go.set()
        if again:
            assert reader.result(30) == "yo"
        else:
            with pytest.raises(OptionError, match="no adapter 'x'; there is none"):
                reader.result(30)
    check_sound(pool)
    assert list(pool.resident) == (["x"] if again else [])


def test_an_adapter_that_is_removed_while_it_is_added(runtime, encoder, tmp_path):
    """It was added, and is there no more: no error, and no slot is lost."""
    folder = acting(encoder, "x", 1).save(tmp_path / "x")
    facts = runtime.facts

    def measure(name, place):
        pool.forget(name)
        return 0.25

    pool = Pool(LiveBank(facts.banks, "float32", 2), lambda path: load(path, facts), measure)
    known, resident = pool.add(folder, load(folder, facts))
    assert (known.saturation, resident, pool.known) == (0.25, None, {})
    check_sound(pool)
