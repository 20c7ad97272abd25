"""Windows: every token of a text is in one, at its own place."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptx.data.windows import LEAST, sliding, whole
from adaptx.errors import OptionError

WORDS = st.lists(
    st.sampled_from(["Adé", "lọ", "sí", "Ìbàdàn", ",", "leo", "ﬁn", "東京", "к", "🙂", "a" * 30]),
    max_size=60,
)
seeded = settings(derandomize=True, deadline=None, max_examples=60)


@seeded
@given(WORDS, st.integers(40, 80), st.integers(0, 30))
def test_windows_have_every_token_of_the_text_at_its_place(encoder_text, words, limit, overlap):
    text, prefix = " ".join(words), "query: "
    (windows,) = sliding(encoder_text, prefix, [text], limit, overlap)
    (uncut,) = encoder_text.ids([prefix + text], encoder_text.max_length)
    if len(uncut) <= limit:
        assert [window.ids for window in windows] == [uncut]
    covered = np.zeros(len(text), bool)
    seen = set()
    for window in windows:
        assert len(window.ids) <= limit
        assert (window.ids[0], window.ids[-1]) == (uncut[0], uncut[-1])
        for token, (start, end) in zip(window.ids, window.offsets, strict=True):
            assert (start < 0) == (end < 0) and end <= len(text)
            if end >= 0:
                covered[start:end] = True
                seen.add((token, int(start), int(end)))
    assert all(covered[i] for i, c in enumerate(text) if not c.isspace())
    once = sliding(encoder_text, prefix, [text])[0]
    if len(once) == 1:
        inside = once[0].offsets[:, 1] >= 0
        ids = np.array(once[0].ids)[inside]
        places = once[0].offsets[inside]
        assert seen == {(int(t), int(s), int(e)) for t, (s, e) in zip(ids, places, strict=True)}


@seeded
@given(WORDS.filter(bool), WORDS.filter(bool), st.integers(40, 90))
def test_a_question_stands_before_each_window_of_its_passage(encoder_text, asked, words, limit):
    question, passage = " ".join(asked), " ".join(words)
    (windows,) = sliding(encoder_text, "query: ", [(question, passage)], limit, 8)
    covered = np.zeros(len(passage), bool)
    heads = set()
    for window in windows:
        assert len(window.ids) <= limit
        first = int(np.flatnonzero(window.offsets[:, 1] >= 0)[0])
        heads.add(tuple(window.ids[:first]))
        for start, end in window.offsets:
            covered[max(start, 0) : max(end, 0)] = True
    assert len(heads) == 1
    tokenizer = encoder_text.tokenizer
    whole_ids = tokenizer.encode("query: " + question, add_special_tokens=False).ids
    kept = [id_ for id_ in heads.pop() if id_ not in tokenizer.encode("", "").ids]
    assert kept == whole_ids[: len(kept)]
    assert sum(window.cut for window in windows) == len(whole_ids) - len(kept)
    assert all(covered[i] for i, c in enumerate(passage) if not c.isspace())


@seeded
@given(WORDS, WORDS, st.integers(40, 90))
def test_two_texts_in_one_window_lose_the_end_of_the_longer(encoder_text, one, two, limit):
    pair = (" ".join(one), " ".join(two))
    (window,) = whole(encoder_text, "", [pair], limit)
    tokenizer = encoder_text.tokenizer
    uncut = tokenizer.encode(*pair).ids
    assert len(window.ids) <= limit and len(uncut) - window.cut == len(window.ids)
    if not window.cut:
        assert window.ids == uncut
    else:
        assert len(window.ids) == limit
        lengths = [len(tokenizer.encode(x, add_special_tokens=False).ids) for x in pair]
        short = min(lengths)
        room = limit - len(tokenizer.encode("", "").ids)
        if short <= room // 2:  # it is whole
            assert window.cut == sum(lengths) - room


def test_a_limit_that_leaves_no_room_is_refused(encoder_text):
    with pytest.raises(OptionError, match=f"at least {2 * LEAST} are needed"):
        sliding(encoder_text, "", [("a", "b")], 2 * LEAST)
    with pytest.raises(OptionError, match="Text 1 is a int"):
        sliding(encoder_text, "", [3])


@pytest.fixture(scope="module")
def encoder_text(small):
    return small.text
