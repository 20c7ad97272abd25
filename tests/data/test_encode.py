import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from adaptx.data.encode import TextEncoder
from adaptx.encoder.bundled import bundled_folder
from adaptx.errors import OptionError

BOS, PAD, EOS = 0, 1, 2
TEXTS = ["Habari ya asubuhi", "", "Adé lọ sí Ìbàdàn", "ሰላም 👑 " * 40, "The weather is fine today."]
seeded = settings(derandomize=True, deadline=None, max_examples=60)
texts = st.text(st.characters(codec="utf-8"), max_size=80)


def tokenizer():
    return Tokenizer.from_file(str(bundled_folder("multilingual-e5-small") / "tokenizer.json"))


@pytest.fixture(scope="module")
def encode():
    return TextEncoder(tokenizer(), pad_id=PAD, max_length=512)


def test_the_special_tokens_are_the_ones_that_these_tests_name(encode):
    names = [encode.tokenizer.id_to_token(id_) for id_ in (BOS, PAD, EOS)]
    assert names == ["<s>", "<pad>", "</s>"]


@seeded
@given(st.lists(texts, max_size=5))
def test_ids_are_framed_by_the_special_tokens(encode, listed):
    found = encode.ids(listed)
    assert len(found) == len(listed)
    assert all((ids[0], ids[-1]) == (BOS, EOS) and len(ids) <= 512 for ids in found)


def test_ids_between_the_special_tokens_are_the_tokenizers_own(encode):
    bare = tokenizer().encode("Habari ya asubuhi", add_special_tokens=False).ids
    assert encode.ids(["Habari ya asubuhi"]) == [[BOS, *bare, EOS]]
    assert len(bare) >= 3


def test_an_empty_text_is_the_special_tokens_alone(encode):
    assert encode.ids([""]) == [[BOS, EOS]]


def test_no_texts_give_no_ids(encode):
    assert encode.ids([]) == []


def test_texts_do_not_change_each_others_ids(encode):
    together = encode.ids(TEXTS, 16)
    assert together == [encode.ids([text], 16)[0] for text in TEXTS]


@seeded
@given(st.lists(texts, min_size=1, max_size=4), st.integers(2, 40))
def test_truncation_keeps_the_beginning_and_the_closing_special_token(encode, listed, limit):
    whole = encode.ids(listed)
    for full, cut in zip(whole, encode.ids(listed, limit), strict=True):
        assert cut == (full if len(full) <= limit else [*full[: limit - 1], EOS])


@pytest.mark.parametrize("limit", [2, 3, 17])
def test_a_long_text_fills_its_limit(encode, limit):
    long = "habari ya asubuhi " * 400
    assert len(encode.ids([long], limit)[0]) == limit
    assert len(encode.ids([long])[0]) == 512


def test_max_length_never_raises_above_the_encoders_own():
    short = TextEncoder(tokenizer(), pad_id=PAD, max_length=8)
    long = "habari ya asubuhi " * 40
    assert [len(short.ids([long], limit)[0]) for limit in (None, 4, 8, 9, 512)] == [8, 4, 8, 8, 8]


@pytest.mark.parametrize("limit", [-1, 1])
def test_a_max_length_without_room_for_the_special_tokens_is_refused(encode, limit):
    with pytest.raises(OptionError, match="max_length"):
        encode.ids(["habari ya asubuhi"], limit)


def test_a_tokenizers_own_padding_and_truncation_are_switched_off():
    configured = tokenizer()
    configured.enable_padding(pad_id=PAD, length=64)
    configured.enable_truncation(max_length=4)
    plain = TextEncoder(tokenizer(), pad_id=PAD, max_length=512)
    assert TextEncoder(configured, pad_id=PAD, max_length=512).ids(TEXTS) == plain.ids(TEXTS)


def test_a_batch_is_padded_on_the_right_to_its_longest_row(encode):
    ids = [[0, 5, 2], [0, 2], [0, 7, 8, 9, 2], [0, 6, 2]]
    batch = encode.batch(ids, [3, 1, 0])
    assert batch.input_ids.tolist() == [[0, 6, 2], [0, 2, PAD], [0, 5, 2]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 1]]
    assert batch.rows.tolist() == [3, 1, 0]
    arrays = (batch.input_ids, batch.attention_mask, batch.rows)
    assert all(array.dtype == np.int64 for array in arrays)


def test_padding_takes_the_encoders_pad_id():
    padded = TextEncoder(tokenizer(), pad_id=77, max_length=512).batch([[0, 2], [0, 5, 2]], [0, 1])
    assert padded.input_ids.tolist() == [[0, 2, 77], [0, 5, 2]]


def test_batches_put_rows_of_like_length_together_the_longest_first(encode):
    ids = [[0, *[9] * n, 2] for n in (1, 6, 1, 6, 3)]
    assert [batch.rows.tolist() for batch in encode.batches(ids, 2)] == [[1, 3], [4, 0], [2]]


def test_no_rows_give_no_batches(encode):
    assert list(encode.batches([], 4)) == []


rows_of_ids = st.lists(st.lists(st.integers(0, 250_000), min_size=1, max_size=12), max_size=30)


@seeded
@given(rows_of_ids, st.integers(1, 9))
def test_batches_give_every_row_once_and_pad_only_where_the_mask_is_0(encode, ids, size):
    batches = list(encode.batches(ids, size))
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(ids)))
    for batch in batches:
        assert 1 <= len(batch.rows) <= size
        assert batch.input_ids.shape == batch.attention_mask.shape
        assert batch.input_ids.shape == (len(batch.rows), max(len(ids[row]) for row in batch.rows))
        assert set(np.unique(batch.attention_mask)) <= {0, 1}
        for row, found, mask in zip(batch.rows, batch.input_ids, batch.attention_mask, strict=True):
            assert mask.tolist() == sorted(mask.tolist(), reverse=True)
            assert found[mask == 1].tolist() == ids[row]
            assert (found[mask == 0] == PAD).all()
