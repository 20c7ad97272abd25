import json
from collections import Counter

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers
from tokenizers import pre_tokenizers as pre

import adaptx as ax
from adaptx.data.read import find_split, read_examples
from adaptx.encoder.bundled import bundled_folder
from adaptx.errors import DataError, OptionError
from adaptx.onnx.build import build
from adaptx.onnx.probe_texts import PROBE_TEXTS
from adaptx.onnx.vocabulary import Cut, cut, cut_table, new_id
from tests.conftest import ROOT
from tests.encoder.families import _cut as first_pieces


def sample(language, *splits):
    folder = ROOT / "recipes" / "data" / language
    return [e.text for split in splits for e in read_examples(find_split(folder, split))]


SWAHILI = sample("swh", "train", "dev", "test")
ENGLISH, FRENCH = sample("eng", "test"), sample("fra", "test")
TEXTS = {"sw": SWAHILI, "en": ENGLISH}
ALL = [*SWAHILI, *ENGLISH, *FRENCH, *PROBE_TEXTS]  # what the tokenizers here are trained on
QUERY = "query: "


def trained(model, trainer, pre_tokenizer, normalizer=None, decoder=None):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    if decoder:
        tokenizer.decoder = decoder
    tokenizer.train_from_iterator(ALL, trainer)
    return tokenizer


def unigram():
    """The real one, with its first 16,000 pieces."""
    path = bundled_folder("multilingual-e5-small") / "tokenizer.json"
    return Tokenizer.from_str(first_pieces(path))


def unigram_with_bytes():
    special = ["<pad>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.UnigramTrainer(
        vocab_size=1500, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer = trained(models.Unigram(), trainer, pre.Metaspace())
    data = json.loads(tokenizer.to_str())
    data["model"]["byte_fallback"] = True
    data["added_tokens"] = data["added_tokens"][:2]  # bytes are plain pieces
    return Tokenizer.from_str(json.dumps(data))


def wordpiece():
    trainer = trainers.WordPieceTrainer(
        vocab_size=2500,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        show_progress=False,
    )
    model, normalizer = models.WordPiece(unk_token="[UNK]"), normalizers.BertNormalizer()
    tokenizer = trained(model, trainer, pre.BertPreTokenizer(), normalizer, decoders.WordPiece())
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def bpe_of_bytes():
    """As RoBERTa's, with an added token behind the model's pieces."""
    trainer = trainers.BpeTrainer(
        vocab_size=2500,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer = trained(models.BPE(), trainer, pre.ByteLevel(add_prefix_space=False))
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.add_tokens(["@mtumiaji"])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def bpe_with_ends():
    trainer = trainers.BpeTrainer(
        vocab_size=2500,
        special_tokens=["<unk>"],
        end_of_word_suffix="</w>",
        continuing_subword_prefix="##",
        show_progress=False,
    )
    model = models.BPE(unk_token="<unk>", end_of_word_suffix="</w>", continuing_subword_prefix="##")
    return trained(model, trainer, pre.BertPreTokenizer())


def bpe_converted(**options):
    """As converters write sentencepiece's: a merge for every pair that gives a piece."""
    special = ["<pad>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=2500, special_tokens=special, show_progress=False)
    tokenizer = trained(models.BPE(unk_token="<unk>"), trainer, pre.Metaspace())
    data = json.loads(tokenizer.to_str())
    vocab = data["model"]["vocab"]
    pairs = [
        (id_, [piece[:i], piece[i:]])
        for piece, id_ in vocab.items()
        for i in range(1, len(piece))
        if piece[:i] in vocab and piece[i:] in vocab
    ]
    data["model"]["merges"] = [pair for _, pair in sorted(pairs)]
    data["model"] |= {"byte_fallback": True, "fuse_unk": True, **options}
    data["added_tokens"] = data["added_tokens"][:2]
    return Tokenizer.from_str(json.dumps(data))


def bpe_whole_words():
    return bpe_converted(ignore_merges=True)


MADE = (
    *(unigram, unigram_with_bytes, wordpiece),
    *(bpe_of_bytes, bpe_with_ends, bpe_converted, bpe_whole_words),
)


class Both:
    """A tokenizer and a part of it."""

    def __init__(self, whole, texts=TEXTS, **options):
        self.whole = whole
        self.cut: Cut = cut(whole.to_str(), texts, **options)
        self.made = Tokenizer.from_str(self.cut.tokenizer_json)
        self.new = {old: new for new, old in enumerate(self.cut.kept.tolist())}

    def is_covered(self, text):
        return all(old in self.new for old in self.whole.encode(text).ids)

    def check(self, text):
        """The same pieces, at the same places, with the new ids."""
        before, after = self.whole.encode(text), self.made.encode(text)
        assert after.ids == [self.new[old] for old in before.ids], text
        assert after.offsets == before.offsets
        assert after.special_tokens_mask == before.special_tokens_mask


@pytest.fixture(scope="module", params=MADE, ids=lambda made: made.__name__)
def both(request):
    return Both(request.param(), {"sw": SWAHILI[:120]}, margin=60, prefixes=[QUERY])


@pytest.fixture(scope="module")
def real():
    path = bundled_folder("multilingual-e5-small") / "tokenizer.json"
    return Both(Tokenizer.from_file(str(path)), prefixes=[QUERY])


def test_covered_texts_are_tokenized_as_before(both):
    words = sorted({word for text in ALL for word in text.split()})
    covered = [text for text in [*ALL, *words] if both.is_covered(text)]
    assert len(covered) > 500
    assert len(both.cut.kept) < both.whole.get_vocab_size() * 0.9
    for text in covered:
        both.check(text)
    assert not all(both.is_covered(word) for word in words)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_covered_texts_are_tokenized_as_before_whatever_they_are(both, data):
    pieces = [both.whole.id_to_token(old) for old in both.cut.kept.tolist()]
    bodies = [piece.replace("▁", " ").replace("Ġ", " ") for piece in pieces]
    words = " ".join(SWAHILI).split()
    part = st.one_of(
        st.sampled_from(bodies),
        st.sampled_from(words),
        st.tuples(st.sampled_from(words), st.sampled_from(words)).map(
            lambda pair: pair[0][: len(pair[0]) // 2 + 1] + pair[1][len(pair[1]) // 2 :]
        ),
        st.text("abeghiknuw ny'-.19", max_size=6),
        st.sampled_from(["\u05d0", "漢", "🎉", "e\u0301", "\t", "<mask>", "@mtumiaji", "[MASK]"]),
    )
    parts = data.draw(st.lists(part, min_size=1, max_size=8))
    text = data.draw(st.sampled_from(["", " "])).join(parts)
    # What isn't covered doesn't say anything of what is.
    for candidate in (text, *parts):
        if both.is_covered(candidate):
            both.check(candidate)


def test_what_was_counted_is_covered_alone_and_behind_prefixes(both):
    counted = [text for i, text in enumerate(SWAHILI[:120], 1) if i % 10]
    for text in counted:
        for candidate in (text, QUERY + text):
            assert both.is_covered(candidate)
            both.check(candidate)


def test_ids_ascend_and_each_is_its_tokens_place(both):
    kept = both.cut.kept
    assert kept.dtype == np.int64
    assert (np.diff(kept) > 0).all()
    assert both.made.get_vocab_size() == len(kept)
    for place, old in enumerate(kept.tolist()):
        assert both.made.id_to_token(place) == both.whole.id_to_token(old)
        assert both.made.token_to_id(both.whole.id_to_token(old)) == place == new_id(kept, old)


def test_special_and_added_tokens_bytes_and_signs_are_kept(both):
    wanted = [token.content for token in both.whole.get_added_tokens_decoder().values()]
    wanted += [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = both.whole.get_vocab()
    model = json.loads(both.whole.to_str())
    if "ByteLevel" in json.dumps(model["pre_tokenizer"]):
        wanted += pre.ByteLevel.alphabet()
    wanted += [mark + c for c in "09azAZ!?,.;:\"'()[]@#$%&*+-=/€«»" for mark in ("", "##")]
    wanted += [c + "</w>" for c in "09azAZ!?.,"]
    for token in wanted:
        if token in vocab:
            assert vocab[token] in both.new, token
    before = both.whole.get_added_tokens_decoder()
    after = both.made.get_added_tokens_decoder()
    assert {both.new[old]: str(token) for old, token in before.items()} == {
        new: str(token) for new, token in after.items()
    }


def test_the_rest_of_the_tokenizer_is_as_it_was(both):
    before, after = json.loads(both.whole.to_str()), json.loads(both.made.to_str())
    for part in ("version", "truncation", "normalizer", "pre_tokenizer", "decoder"):
        assert after[part] == before[part]
    sizes = ("vocab", "merges", "unk_id")
    assert {k: v for k, v in after["model"].items() if k not in sizes} == {
        k: v for k, v in before["model"].items() if k not in sizes
    }


def test_templates_pairs_padding_and_truncation():
    whole = bpe_of_bytes()
    mask = whole.token_to_id("<mask>")
    whole.post_processor = processors.Sequence(
        [
            processors.ByteLevel(),
            processors.TemplateProcessing(
                single="<s> $A <mask>",
                pair="<s> $A </s> $B:1 <mask>:1",
                special_tokens=[("<s>", 0), ("</s>", 2), ("<mask>", mask)],
            ),
        ]
    )
    whole.enable_padding(pad_id=mask, pad_token="<mask>", length=12)
    whole.enable_truncation(12)
    both = Both(whole, margin=0)
    assert both.new[mask] != mask
    both.check("Habari za asubuhi")
    both.check("Wachangiaji wa damu wanahitajika haraka katika hospitali ya rufaa")
    before, after = whole.encode("Habari", "za leo"), both.made.encode("Habari", "za leo")
    assert after.ids == [both.new[old] for old in before.ids]
    assert after.type_ids == before.type_ids
    assert both.made.padding == {**whole.padding, "pad_id": both.new[mask]}
    assert both.made.truncation == whole.truncation


def test_the_unknown_piece_keeps_its_score():
    # Its score follows from the lowest one: without that, "ab" would be one unknown piece less.
    pieces = [("<unk>", 0.0), ("a", -2.0), ("bc", -3.0), ("▁", -1.0), ("abcdé", -90.0)]
    whole = Tokenizer(models.Unigram([*pieces, ("zz", -5.0)], unk_id=0, byte_fallback=False))
    whole.pre_tokenizer = pre.Metaspace()
    both = Both(whole, {"sw": ["a" * n for n in range(1, 20)]}, margin=0)
    assert "zz" not in both.made.get_vocab()
    assert "abcdé" in both.made.get_vocab()
    for text in ("a", "qa", "bc", "aqbc"):
        before, after = whole.encode(text), both.made.encode(text)
        if both.is_covered(text):
            assert after.ids == [both.new[old] for old in before.ids]


@pytest.mark.parametrize("pieces", [[], [("a", -900.0), ("b", -2000.0), ("z", -950.0)]])
def test_vocabularies_of_a_few_pieces_with_odd_scores(pieces):
    whole = Tokenizer(models.Unigram([("<unk>", 0.0), *pieces], unk_id=0, byte_fallback=False))
    both = Both(whole, {"sw": ["a" * n for n in range(1, 20)]})
    assert both.cut.kept.tolist() == list(range(1 + len(pieces)))
    both.check("abaz")


def test_merges_are_left_in_their_order(both):
    model = json.loads(both.made.to_str())["model"]
    if model["type"] != "BPE":
        return
    before = json.loads(both.whole.to_str())["model"]["merges"]
    places = [before.index(pair) for pair in model["merges"]]
    assert places == sorted(places)
    assert 0 < len(places) < len(before)


def test_only_the_pieces_on_the_way_come_with_a_converted_piece():
    """Not those of every merge that would give it: they'd double the vocabulary."""
    both = Both(bpe_converted(), {"sw": SWAHILI[:120]}, margin=0)
    merges = json.loads(both.whole.to_str())["model"]["merges"]
    vocab = both.whole.get_vocab()
    made_by = Counter(a + b for a, b in merges)
    assert max(made_by.values()) > 3
    parts = {p for a, b in merges if vocab[a + b] in both.new for p in (a, b)}
    assert len({vocab[part] for part in parts} - both.new.keys()) > 20


def test_a_margin_adds_pieces_of_the_texts_scripts():
    whole = unigram()
    sizes = {margin: Both(whole, margin=margin) for margin in (0, 500, 2000)}
    counts = {margin: len(found.cut.kept) for margin, found in sizes.items()}
    assert counts[500] - counts[0] == 500
    assert counts[2000] - counts[0] == 2000
    cyrillic, cut_ = whole.token_to_id("▁по"), sizes[2000]
    assert cyrillic is not None
    assert cyrillic not in cut_.new
    assert set(sizes[0].new) < set(sizes[500].new) < set(cut_.new)
    tokens = [found.cut.coverage["en"]["tokens"] for found in sizes.values()]
    assert tokens == sorted(tokens)
    assert Both(whole, margin=10**6).new.keys() < set(range(whole.get_vocab_size()))


def test_the_margin_is_of_the_texts_languages():
    """Of a held-out language's frequent pieces it adds those that are spelt as the texts are."""
    whole = unigram()
    texts = {"sw": SWAHILI[:70], "fr": FRENCH}
    wanted = {old for text in SWAHILI[70:] for old in whole.encode(text).ids}
    for without in Both(whole, texts, margin=0), Both(whole, {"fr": FRENCH}, margin=0):
        wanted -= without.new.keys()
    assert len(wanted) > 100
    found = {
        language: len(wanted & Both(whole, {language: texts[language]}, margin=1500).new.keys())
        for language in texts
    }
    assert found["sw"] > 1.5 * found["fr"]


def test_single_characters_of_the_texts_scripts_are_kept_and_stray_scripts_ignored():
    whole = unigram()
    cyrillic = Both(whole, {"ru": [f"Это пример {n}" for n in range(30)]}, margin=0)
    assert whole.token_to_id("ю") in cyrillic.new
    assert whole.token_to_id("a") in cyrillic.new  # ASCII
    assert whole.token_to_id("é") not in cyrillic.new
    stray = Both(whole, {"sw": [*SWAHILI, "北京 ni mji mkuu"]}, margin=0)
    assert whole.token_to_id("é") in stray.new
    assert whole.token_to_id("你") not in stray.new


def test_coverage_is_of_every_tenth_text():
    whole = unigram()
    both = Both(whole, margin=0)
    assert both.cut.coverage.keys() == TEXTS.keys()
    for language, texts in TEXTS.items():
        held_out = list(dict.fromkeys(texts))[9::10]
        found = both.cut.coverage[language]
        assert found["held_out"] == len(held_out)
        assert found["texts"] == np.mean([both.is_covered(text) for text in held_out])
        assert 0.7 < found["tokens"] < 1
    # The held-out tenth isn't counted: words of it alone aren't there.
    tenth = [*(["habari njema"] * 9 + ["Mwanajuma"])] * 3
    rows = [f"{text} {n}" for n, text in enumerate(tenth)]
    alone = Both(whole, {"sw": rows}, margin=0)
    assert alone.cut.coverage["sw"]["texts"] == 0
    assert not alone.is_covered("Mwanajuma")


def test_repeated_and_blank_texts_are_counted_once_and_not_at_all():
    whole = wordpiece()
    once = Both(whole, {"sw": SWAHILI[:50]}, margin=10)
    rows = [text for text in SWAHILI[:50] for _ in range(3)]
    again = Both(whole, {"sw": ["", "  ", *rows, "\n"]}, margin=10)
    assert again.cut.coverage == once.cut.coverage
    np.testing.assert_array_equal(again.cut.kept, once.cut.kept)


def test_the_real_vocabulary_becomes_small_and_covers_most(real):
    assert 25_000 < len(real.cut.kept) < 45_000
    megabytes = (len(real.cut.kept) * 388 + len(real.cut.tokenizer_json.encode())) / 1e6
    assert megabytes < 40 - 21.5
    for coverage in real.cut.coverage.values():  # of so few texts
        assert coverage["tokens"] > 0.88
    for text in (QUERY, "1234567890, 1961", "<s> <mask> € ( ? ) 🎉", *SWAHILI[:9]):
        assert real.is_covered(text)
        real.check(text)
    words = {word for text in [*SWAHILI, *ENGLISH] for word in text.split()}
    covered = [word for word in sorted(words) if real.is_covered(word)]
    assert len(covered) > 0.9 * len(words)
    for word in covered:
        real.check(word)


@pytest.mark.requires_data
def test_coverage_of_texts_from_elsewhere(real):
    import os
    from pathlib import Path

    folder = Path(os.environ["ADAPTX_DATA"]) / "sib200"
    names = {"sw": "swh_Latn", "en": "eng_Latn"}

    def read(split):
        return {
            key: [e.text for e in read_examples(find_split(folder / name, split))]
            for key, name in names.items()
        }

    both = Both(real.whole, read("train"), prefixes=[QUERY])
    assert len(both.cut.kept) < 40_000
    for texts in read("test").values():
        tokens = [old for text in texts for old in both.whole.encode(text).ids[1:-1]]
        assert np.mean([old in both.new for old in tokens]) > 0.97
        covered = [text for text in texts if both.is_covered(text)]
        assert len(covered) > 0.5 * len(texts)
        for text in covered:
            both.check(text)


def session(model):
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_a_cut_graph_answers_the_same_to_the_bit(small_folders, real, family):
    encoder = ax.Encoder.from_pretrained(small_folders[family])
    both = real if family == "bert" else Both(encoder.text.tokenizer, margin=100)
    model, banks = build(encoder, [])
    assert banks == []
    made = cut_table(model, both.cut.kept)
    assert made.ByteSize() < model.ByteSize()

    texts = [text for text in [*SWAHILI, *ENGLISH] if both.is_covered(text)][:24]
    assert len(texts) == 24
    text = encoder.text
    batch = text.batch(text.ids(texts, max_length=40), range(len(texts)))
    new = np.vectorize(lambda old: new_id(both.cut.kept, old))(batch.input_ids)
    assert (new != batch.input_ids).any()
    mask = {"attention_mask": batch.attention_mask}
    wanted = session(model).run(None, {"input_ids": batch.input_ids, **mask})
    found = session(made).run(None, {"input_ids": new, **mask})
    for a, b in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(a, b)


def constants(model):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def test_only_the_word_table_is_cut(small):
    model, _ = build(small, [])
    kept = np.array([0, 1, 2, 3, 70, 500, 250_001])
    before, after = constants(model), constants(cut_table(model, kept))
    words = "embeddings.word_embeddings"
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value[kept] if name == words else value)
    assert len(constants(model)[words]) == 250_037  # the model given is as it was


def test_the_padding_from_which_positions_count_keeps_its_id(small_folders):
    model, _ = build(ax.Encoder.from_pretrained(small_folders["xlm-roberta"]), [])
    cut_table(model, np.array([0, 1, 5]))
    for kept in ([1, 2, 5], [0, 2, 5], [0, 2]):
        with pytest.raises(OptionError, match="token 1"):
            cut_table(model, np.array(kept))
    kept = cut(unigram().to_str(), {"sw": SWAHILI}, margin=0).kept
    np.testing.assert_array_equal(kept[:4], range(4))


@pytest.mark.parametrize(
    "kept", [[], [[0, 1]], [1, 0], [0, 0], [0.0, 1.0], [-1, 0], [0, 250_037]], ids=str
)
def test_rows_that_a_table_does_not_have(small, kept):
    model, _ = build(small, [])
    with pytest.raises(OptionError, match="kept ids"):
        cut_table(model, np.array(kept))


def test_graphs_that_cannot_be_cut(small):
    model, _ = build(small, [])
    model.graph.node.append(helper.make_node("Neg", ["input_ids"], ["x"], name="odd"))
    with pytest.raises(OptionError, match="Neg node odd reads"):
        cut_table(model, np.arange(9))
    del model.graph.node[-1]
    tied = helper.make_node("MatMul", ["hidden", "embeddings.word_embeddings"], ["x"])
    model.graph.node.append(tied)
    with pytest.raises(OptionError, match="word table"):
        cut_table(model, np.arange(9))


def test_new_ids():
    kept = np.array([0, 3, 7])
    assert [new_id(kept, old) for old in (0, 3, 7)] == [0, 1, 2]
    for old in (-1, 1, 8):
        with pytest.raises(OptionError, match=f"Token {old} isn't among the 3"):
            new_id(kept, old)


def word_level():
    vocab = {"[UNK]": 0, "a": 1}
    return Tokenizer(models.WordLevel(vocab, unk_token="[UNK]")).to_str()


@pytest.mark.parametrize(
    ("tokenizer_json", "problem"),
    [
        ("{", "can't be read as a tokenizer"),
        (word_level(), "A WordLevel tokenizer's vocabulary can't be cut; .*WordPiece"),
        (Tokenizer(models.Unigram([("a", -1.0)])).to_str(), "no unknown piece"),
        (Tokenizer(models.WordPiece({"a": 0}, unk_token="[UNK]")).to_str(), r"'\[UNK\]' isn't in"),
    ],
)
def test_tokenizers_that_cannot_be_cut(tokenizer_json, problem):
    with pytest.raises(OptionError, match=problem):
        cut(tokenizer_json, {"sw": ["a"] * 5 + [f"a{n}" for n in range(20)]})


def test_a_vocabulary_whose_ids_have_gaps_below_an_added_token():
    whole = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##a": 50}, unk_token="[UNK]"))
    whole.add_tokens(["@x"])  # gets 3, the first beyond as many as there are
    with pytest.raises(OptionError, match="ids have gaps"):
        cut(whole.to_str(), {"sw": ["a" * n for n in range(1, 20)]})


@pytest.mark.parametrize(
    ("texts", "error", "problem"),
    [
        ({}, DataError, "no texts"),
        ({"sw": []}, DataError, "0 different texts of language 'sw'"),
        ({"sw": SWAHILI, "en": ["", " "] * 20}, DataError, "0 different texts of language 'en'"),
        ({"sw": ["habari"] * 50}, DataError, "has 1 different texts"),
        ({"sw": SWAHILI[:9]}, DataError, "give at least 10"),
        ({"sw": "habari za leo"}, OptionError, "must be a list"),
        ({"sw": [*SWAHILI, 3]}, OptionError, "is a int, not a text"),
        ({"sw": [*SWAHILI, "\ud800"]}, OptionError, "isn't valid Unicode"),
    ],
)
def test_bad_corpora(texts, error, problem):
    with pytest.raises(error, match=problem):
        cut(word_level(), texts)


def test_bad_options():
    with pytest.raises(OptionError, match="margin=-1"):
        cut(word_level(), TEXTS, margin=-1)
    with pytest.raises(OptionError, match="is a NoneType"):
        cut(wordpiece().to_str(), TEXTS, prefixes=[None])
