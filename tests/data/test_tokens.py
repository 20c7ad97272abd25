"""Tokens per word and the like, against counts made by hand and by other means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from adaptx.data.tokens import is_unspaced, tokenization
from adaptx.errors import DataError


@pytest.fixture(scope="module")
def wordpiece():
    """WordPiece over a few pieces; what it can't spell is one [UNK] a word."""
    pieces = ["[UNK]", "sa", "##ba", "##la", "timu", "."]
    model = models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def test_counts_made_by_hand(wordpiece):
    found = tokenization(wordpiece, ["Timu  sabala.", "sa xyz"])
    # timu | sa ##ba ##la . || sa | [UNK]: 7 tokens, 4 words, 11 + 5 characters, 3 of them unseen
    assert found.texts == 2
    assert found.tokens_per_word == pytest.approx(7 / 4)
    assert found.characters_per_token == pytest.approx(16 / 7)
    assert found.tokens_per_text == pytest.approx(7 / 2)
    assert found.unknown == pytest.approx(3 / 16)


def test_what_xlm_rs_vocabulary_lacks_is_counted_in_characters(small):
    tokenizer = small.text.tokenizer
    assert tokenization(tokenizer, ["Nimefurahi sana kukuona"]).unknown == 0
    osage = "".join(map(chr, range(0x104B0, 0x104B5)))  # five letters of a script that it lacks
    found = tokenization(tokenizer, [f"abc {osage}"])
    assert found.unknown == pytest.approx(5 / 8)


def test_bytes_are_never_unknown():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found = tokenization(tokenizer, ["sana", "Ọjọ́"])
    assert found.unknown == 0
    assert found.tokens_per_text == (4 + len("Ọjọ́".encode())) / 2


def test_the_bundled_tokenizer_agrees_with_its_own_pieces(encoder):
    texts = ["Timu yetu imeshinda", "Adé lọ sí Ìbàdàn"]
    pieces = [encoder.text.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    tokens = sum(len(piece.tokens) for piece in pieces)
    found = tokenization(encoder.text.tokenizer, texts)
    assert found.tokens_per_word == pytest.approx(tokens / 7)
    assert found.tokens_per_text == pytest.approx(tokens / 2)
    assert found.characters_per_token == pytest.approx(
        sum(len("".join(t.split())) for t in texts) / tokens
    )


@pytest.mark.parametrize(
    ("text", "unspaced"),
    [
        ("Timu yetu imeshinda", False),
        ("ሰላም ለዓለም", False),
        ("안녕하세요 여러분", False),
        ("नमस्ते दुनिया", False),
        ("สวัสดีชาวโลก", True),
        ("ສະບາຍດີ", True),
        ("សួស្តី", True),
        ("မင်္ဂလာပါ", True),
        ("བཀྲ་ཤིས་བདེ་ལེགས", True),
        ("你好,世界", True),
        ("こんにちは世界", True),
        ("Windows を使う a b", False),  # most of its letters are Latin
        ("123 !?", False),
    ],
)
def test_scripts_without_spaces_are_told_by_their_letters(small, text, unspaced):
    assert is_unspaced([text]) is unspaced
    per_word = tokenization(small.text.tokenizer, [text]).tokens_per_word
    assert (per_word is None) is unspaced


LETTERS = "ab ̀é日"
UNIGRAM = Tokenizer(models.Unigram([("<unk>", 0.0), *((c, -1.0) for c in "▁ab日")], unk_id=0))
UNIGRAM.pre_tokenizer = pre_tokenizers.Metaspace()


@given(st.lists(st.text(LETTERS + "\n\x01👍", min_size=1), min_size=1, max_size=5))
def test_what_a_unigram_model_lacks_is_unknown_and_nothing_else(texts):
    visible = [c for text in texts for c in text if not c.isspace()]
    if not visible:
        with pytest.raises(DataError, match="no text"):
            tokenization(UNIGRAM, texts)
        return
    found = tokenization(UNIGRAM, texts)
    assert found.unknown == pytest.approx(sum(c not in "ab日" for c in visible) / len(visible))
    tokens = sum(len(UNIGRAM.encode(text).ids) for text in texts)
    assert found.characters_per_token == pytest.approx(len(visible) / tokens)
