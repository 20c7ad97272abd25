"""What an open bundle answers, against torch with the same adapters."""

import os
import shutil
import subprocess
import sys
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptx.errors import FolderError, OptionError
from adaptx.runtime import Runtime
from adaptx.runtime.sessions import MicroBatch
from tests.runtime.conftest import MOODS, TEXTS, TOPICS

MIXED = ["sw-topics", None, "wide", "bare", "yo-moods", "probe", "imported", "bare", None, "wide"]
LONG = "Bei ya mchele imepanda tena sokoni. " * 20


@pytest.fixture(scope="module")
def exact(fp32):
    with Runtime.open(fp32, threads=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def small(int8):
    """The int8 bundle with workers of one thread, and with one thread alone."""
    with Runtime.open(int8, threads=2) as two, Runtime.open(int8, threads=1) as one:
        yield two, one


def same_as_torch(answers, wanted):
    """Labels, scores and vectors, to 1e-4 of the largest."""
    for answer, right in zip(answers, wanted, strict=True):
        if isinstance(right, np.ndarray):
            assert answer.prediction is None
            assert np.abs(answer.vector - right).max() <= 1e-4 * np.abs(right).max()
        else:
            assert answer.vector is None
            assert answer.prediction.label == right.label
            assert answer.prediction.score == pytest.approx(right.score, abs=1e-4)
            assert answer.prediction.scores == pytest.approx(right.scores, abs=1e-4)


@pytest.mark.parametrize("name", [None, *sorted({name for name in MIXED if name})])
def test_one_adapter_for_all_rows_answers_as_torch(exact, encoder, adapters, name):
    wanted = encoder.predict(TEXTS, adapters[name] if name else None)
    answers = exact.predict(TEXTS, name)
    assert [answer.adapter for answer in answers] == [name] * len(TEXTS)
    same_as_torch(answers, wanted)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    rows=st.lists(st.tuples(st.sampled_from(TEXTS), st.sampled_from(MIXED)), max_size=20),
    max_length=st.sampled_from([None, 4, 9]),
)
def test_mixed_rows_answer_as_torch_in_their_order(exact, encoder, adapters, rows, max_length):
    texts, names = [text for text, _ in rows], [name for _, name in rows]
    chosen = [adapters[name] if name else None for name in names]
    answers = exact.predict(texts, names, max_length=max_length)
    assert [answer.adapter for answer in answers] == names
    if rows:
        same_as_torch(answers, encoder.predict(texts, chosen, max_length=max_length))


def test_vectors_are_the_pooled_states_whatever_head_there_is(exact, encoder, adapters):
    plain = exact.embed(TEXTS)
    assert plain.shape == (len(TEXTS), encoder.hidden_size) and plain.dtype == np.float32
    np.testing.assert_allclose(plain, encoder.embed(TEXTS), rtol=0, atol=1e-4)
    bare = exact.embed(TEXTS, "bare")
    np.testing.assert_allclose(bare, encoder.predict(TEXTS, adapters["bare"]), rtol=0, atol=1e-4)
    topics = exact.embed(TEXTS, "sw-topics")
    labels = exact.logits(topics, "sw-topics").argmax(1)
    answers = exact.predict(TEXTS, "sw-topics")
    assert [TOPICS[i] for i in labels] == [answer.prediction.label for answer in answers]
    with pytest.raises(OptionError, match="'bare' has no head"):
        exact.logits(bare, "bare")


def test_no_texts_have_no_answers(small):
    for runtime in small:
        assert runtime.predict([]) == runtime.predict([], []) == runtime.predict([], "wide") == []
        assert runtime.embed([]).shape == runtime.pooled([]).shape == (0, 32)


def test_a_language_stands_for_its_adapter(exact):
    assert exact.predict(TEXTS, language="sw") == exact.predict(TEXTS, "sw-topics")
    mixed = exact.predict(TEXTS[:3], language=["ru", None, "fr"])
    assert [answer.adapter for answer in mixed] == ["probe", None, "wide"]
    with pytest.raises(OptionError, match=r"'xh'; there is fr, ru, sw, yo"):
        exact.predict(TEXTS, language="xh")
    with pytest.raises(OptionError, match=r"'yo' has 2 adapters, yo-moods, imported: name one"):
        exact.predict(TEXTS, language="yo")
    with pytest.raises(OptionError, match="not both"):
        exact.predict(TEXTS, "wide", language="fr")


def test_a_long_text_loses_its_end_and_says_how_much(exact, encoder):
    whole = len(encoder.text.tokenizer.encode("query: " + LONG).ids)
    assert whole > 70
    asked = exact.predict([LONG, LONG, LONG, "OK"], ["sw-topics", "wide", None, "sw-topics"])
    assert [a.truncated for a in asked] == [whole - 12, whole - 64, whole - 64, 0]
    shorter = exact.predict([LONG, LONG], ["sw-topics", "wide"], max_length=20)
    assert [a.truncated for a in shorter] == [whole - 12, whole - 20]
    assert exact.predict([LONG], "wide", max_length=1000)[0].truncated == whole - 64


def test_a_long_text_is_refused_when_asked(exact):
    with pytest.raises(OptionError, match=r"Text 2 is \d+ tokens longer than the 12 that are"):
        exact.predict(["OK", LONG], "sw-topics", too_long="refuse")
    assert exact.predict(["OK"], "sw-topics", too_long="refuse")[0].truncated == 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda r: r.predict("one text"), "a list of texts"),
        (lambda r: r.embed("one text"), "a list of texts"),
        (lambda r: r.embed(b"bytes"), "a list of texts, not one text"),
        (lambda r: r.predict(None), "a list of texts, not a NoneType"),
        (lambda r: r.predict(5), "a list of texts, not a int"),
        (lambda r: r.predict(text for text in TEXTS), "a list of texts, not a generator"),
        (lambda r: r.predict({"a": 1}), "a list of texts, not a dict"),
        (lambda r: r.embed({"a", "b"}), "a list of texts, not a set"),
        (lambda r: r.predict(["a"], max_length="128"), "max_length='128' must be a whole number"),
        (lambda r: r.predict(["a"], max_length=100.5), "max_length=100.5 must be a whole number"),
        (lambda r: r.embed(["a"], max_length=True), "max_length=True must be a whole number"),
        (lambda r: r.predict(["a", 5]), "Text 2 is a int"),
        (lambda r: r.predict(["a", "\ud800"]), "Text 2 isn't valid Unicode"),
        (lambda r: r.predict(["a"], ["wide", "wide"]), "2 adapters or languages for 1 texts"),
        (lambda r: r.predict(["a"], 5), "5 can't be the name"),
        (lambda r: r.predict(["a"], [5]), "5 can't be the name"),
        (lambda r: r.predict(["a"], language=["xh"]), "'xh'"),
        (lambda r: r.predict(["a"], too_long="drop"), "'drop' is none of truncate, refuse"),
        (lambda r: r.predict(["a"], max_length=1), "special tokens"),
        (lambda r: r.predict(["a"], "sw-topic"), "'sw-topic'; there is sw-topics, yo-moods"),
        (lambda r: r.remove("sw-topic"), "'sw-topic'; there is sw-topics, yo-moods"),
        (lambda r: r.check("sw-topic"), "'sw-topic'; there is sw-topics, yo-moods"),
        (lambda r: r.open(None), "takes a bundle's folder, not None"),
    ],
)
def test_what_cant_be_asked_is_refused_by_name(small, call, said):
    with pytest.raises(OptionError, match=said):
        call(small[0])


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"threads": 0}, OptionError, "threads=0"),
        ({"slots": "many"}, OptionError, "slots='many'"),
        ({"max_resident": 0}, OptionError, "max_resident=0"),
        ({"max_resident": "a lot"}, OptionError, "such as 512MB"),
        ({"max_resident": "0MB"}, OptionError, "such as 512MB"),
        ({"pin": ["sw"]}, OptionError, "pin names sw; there is sw-topics"),
        ({"pin": "wide"}, OptionError, r"pin='wide' must be a list of names, as in pin=\['wide'\]"),
        ({"library": "nowhere"}, FolderError, "no folder nowhere"),
    ],
)
def test_options_that_cant_be_are_refused(int8, options, error, said):
    with pytest.raises(error, match=said):
        Runtime.open(int8, **options)


def test_what_is_known_of_adapters(small):
    found = {info.name: info for info in small[0].adapters()}
    assert list(found) == sorted(found) and len(found) == 6
    topics = found["sw-topics"]
    assert (topics.language, topics.task, topics.labels) == ("sw", "classification", TOPICS)
    assert (topics.rank, topics.resident, topics.pinned) == (3, True, False)
    assert (found["probe"].rank, found["probe"].labels) == (0, MOODS)
    assert (found["bare"].rank, found["bare"].task, found["bare"].labels) == (8, None, ())
    assert "int8, 6 adapters, 2 threads" in repr(small[0])


def test_a_closed_runtime_starts_its_workers_again(int8):
    with Runtime.open(int8, threads=2) as runtime:
        before = runtime.embed(TEXTS, MIXED)
    assert np.array_equal(runtime.embed(TEXTS, MIXED), before)
    runtime.close()


def test_a_bundle_that_was_replaced_is_noticed(int8, fp32, tmp_path):
    """Graphs are opened when they are needed: one of another bundle would answer otherwise."""
    folder = shutil.copytree(int8, tmp_path / "bundle")
    with Runtime.open(folder, threads=2) as runtime:
        before = runtime.embed(TEXTS[:1], "bare")
        folder.rename(tmp_path / "old")
        shutil.copytree(fp32, folder)
        for ask in (lambda: runtime.embed(TEXTS, "bare"), lambda: runtime.check("bare")):
            with pytest.raises(FolderError, match=r"were replaced.*Open it again"):
                ask()
        assert np.array_equal(runtime.embed(TEXTS[:1], "bare"), before)


def test_a_folder_may_be_named_from_where_one_stands(int8, small, tmp_path, monkeypatch):
    monkeypatch.chdir(int8.parent)
    with Runtime.open(int8.name, threads=2) as runtime:
        monkeypatch.chdir(tmp_path)
        assert np.array_equal(runtime.embed(TEXTS, MIXED), small[0].embed(TEXTS, MIXED))


def test_who_has_a_session_waits_for_no_others(int8):
    with Runtime.open(int8, threads=2) as runtime:
        before = runtime.embed(TEXTS[:1])
        with runtime._sessions._opening:  # another thread opens one
            assert np.array_equal(runtime.embed(TEXTS[:1]), before)


def test_states_are_not_kept_once_they_are_read(small):
    """Those of all rows at once may be more than memory holds."""
    runtime = small[1]
    ids = np.array([[0, 100, 200, 2]], np.int64)
    nothing = runtime.pool.bank.nothing
    batch = MicroBatch(ids, np.ones_like(ids), np.zeros(1, np.int64), nothing, hidden=True)
    given = runtime._sessions.run([batch] * 2)
    first = weakref.ref(next(given)[1])
    next(given)
    assert first() is None
    (answer,) = runtime.predict([LONG], "yo-moods")  # its head reads the first token's state
    assert answer.prediction.label in MOODS


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_rows_answer_doesnt_depend_on_its_neighbours(small, encoder, data):
    """Bit for bit: other rows, adapters and padding, micro-batches, one session or workers."""
    two, one = small
    lengths = data.draw(st.lists(st.integers(2, 40), min_size=1, max_size=24))
    names = data.draw(st.lists(st.sampled_from(MIXED), min_size=24, max_size=24))[: len(lengths)]
    random = np.random.default_rng(sum(lengths))
    ids = [[0, *random.integers(4, 15_000, length).tolist(), 2] for length in lengths]
    together = two.pooled(ids, names)
    assert np.array_equal(together, one.pooled(ids, names))
    for row, name, vector in zip(ids, names, together, strict=True):
        alone = one.pooled([row], name)  # its session has one thread; below, two
        assert np.array_equal(alone[0], vector)
        assert np.array_equal(two.pooled([row], [name])[0], vector)


def test_a_row_doesnt_depend_on_where_others_chunks_are(int8, others, small):
    """More adapters than a chunk holds: the same bits, whatever slot an adapter has."""
    with Runtime.open(int8, threads=2, slots=2, library=others) as runtime:
        names = [*(f"more-{i}" for i in range(7)), *MIXED]
        texts = [TEXTS[i % len(TEXTS)] for i in range(len(names))]
        found = runtime.embed(texts, names)
        assert len(runtime.pool.bank.chunks) > 4
        for text, name, vector in zip(texts, names, found, strict=True):
            assert np.array_equal(runtime.embed([text], name)[0], vector)
        own = small[0].embed(texts[7:], MIXED)
        assert np.array_equal(own, found[7:])


def test_without_memory_arena_the_answers_are_the_same(int8, small):
    with Runtime.open(int8, threads=2, arena=False) as runtime:
        assert np.array_equal(runtime.embed(TEXTS, MIXED), small[0].embed(TEXTS, MIXED))


def test_a_process_that_predicts_loads_no_torch(int8):
    code = f"""
import sys
from adaptx.runtime import Runtime
with Runtime.open({str(int8)!r}, threads=1) as runtime:
    answers = runtime.predict(["Nimefurahi sana", "OK", "x"], ["sw-topics", "imported", None])
    runtime.check("sw-topics")
print([answer.adapter for answer in answers])
print([name for name in ("torch", "transformers", "peft", "onnx") if name in sys.modules])
"""
    environment = {**os.environ, "PYTHONWARNINGS": "error::ImportWarning"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert run.stdout.splitlines() == ["['sw-topics', 'imported', None]", "[]"]
