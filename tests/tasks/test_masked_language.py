import itertools
import math
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForMaskedLM

import adaptx as ax
from adaptx.data import large
from adaptx.data.encode import TextEncoder
from adaptx.data.records import Example
from adaptx.encoder.sites import plain_copy
from adaptx.errors import DataError, FolderError, OptionError
from adaptx.runtime import Runtime
from adaptx.tasks import MaskedLanguage, masked_language, task_from_json
from adaptx.tasks.base import IGNORED
from adaptx.tasks.masked_language import LONGEST, Vocabulary, tied_losses, whole_words
from adaptx.training.distributed import place
from adaptx.training.many import Member, train_many
from adaptx.training.rows import EncodedRows, training_rows
from adaptx.training.tune import Trial

seeded = settings(derandomize=True, deadline=None, max_examples=60)
LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
TEXTS = [
    "Mvuvi alirudi jioni na samaki wachache.",
    "Bibi anasuka mkeka mpya barazani.",
    "Mvua ya jana ilijaza visima vyote.",
    "Watoto wanacheza chini ya mwembe mkubwa.",
]
RECORDS = [Example(text) for text in TEXTS]


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[PAD]", "[MASK]"]
    tokenizer.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=60, special_tokens=special)
    )
    return TextEncoder(tokenizer, pad_id=1, max_length=64)


def byte_bpe():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<mask>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return TextEncoder(tokenizer, pad_id=0, max_length=64)


@pytest.fixture(scope="module")
def cut(small_folders):
    """A small encoder with a small vocabulary."""
    return ax.Encoder.from_pretrained(small_folders["xlm-roberta"], prefix="query: ")


@pytest.fixture(scope="module")
def texts(cut):
    """A text encoder of each kind, and how a piece says that it goes on with a word."""
    return {
        "sentencepiece": (cut.text, lambda piece: not piece.startswith("▁")),
        "wordpiece": (wordpiece(), lambda piece: piece.startswith("##")),
        "byte_bpe": (byte_bpe(), lambda piece: not piece.startswith("Ġ")),
    }


def words_of(pieces, goes_on):
    """Places of each word's pieces, by the pieces' names."""
    found = []
    for at, piece in enumerate(pieces):
        if found and goes_on(piece):
            found[-1].append(at)
        else:
            found.append([at])
    return found


plain_words = st.lists(st.text("abmkiuws", min_size=1, max_size=9), min_size=1, max_size=30).map(
    " ".join
)


def test_it_is_written_down_and_refuses_what_cant_be():
    task = MaskedLanguage(share=0.3)
    assert task_from_json(task.to_json()) == task
    for share in (0, 1, -0.1, 1.5, math.nan, "a"):
        with pytest.raises(OptionError, match="share="):
            MaskedLanguage(share=share)
    for options in ({"labels": ("a",)}, {"pooling": "mean"}):
        with pytest.raises(OptionError):
            MaskedLanguage(**options)
    with pytest.raises(DataError, match="no text to learn from"):
        task.fit([])


@pytest.mark.parametrize("kind", ["sentencepiece", "wordpiece", "byte_bpe"])
@seeded
@given(text=plain_words, share=st.sampled_from([0.05, 0.15, 0.5]), seed=st.integers(0, 99))
def test_words_are_masked_whole_and_the_prefix_never(texts, kind, text, share, seed):
    encoder, goes_on = texts[kind]
    task = MaskedLanguage(share=share)
    prefix = "swali "
    (windows,) = task.windows(encoder, prefix, [text])
    before = len(encoder.tokenizer.encode(prefix.strip(), add_special_tokens=False).ids)
    budget = 0
    for window, words in zip(windows, task.targets([Example(text)], [windows]), strict=True):
        _, (target,) = task.drawn(encoder, [window.ids], [words], (seed,))
        masked = {int(place) for place in np.flatnonzero(target != IGNORED)}
        assert (target[sorted(masked)] == np.array(window.ids)[sorted(masked)]).all()
        frame = [p for p in range(len(window.ids)) if window.offsets[p, 1] < 0]
        real = [p for p in range(len(window.ids)) if p not in frame]
        assert len(frame) >= before * (window is windows[0]) and not masked & set(frame)
        pieces = [encoder.tokenizer.id_to_token(window.ids[p]) for p in real]
        groups = [{real[place] for place in word} for word in words_of(pieces, goes_on)]
        split = [{p} for word in groups for p in word if len(word) > LONGEST]
        groups = [word for word in groups if len(word) <= LONGEST] + split
        hit = [word for word in groups if word & masked]
        assert hit and all(word <= masked for word in hit)
        budget = max(1, round(share * len(real)))
        assert len(masked) <= budget or len(hit) == 1


def test_the_share_is_kept_on_average():
    words = np.repeat(np.arange(400), 2)
    shares = [whole_words(words, 0.15, np.random.default_rng(seed)).mean() for seed in range(20)]
    assert shares == pytest.approx([0.15] * 20, abs=1e-9)


def test_a_text_without_spaces_is_masked_token_by_token(cut):
    task, text = MaskedLanguage(), "สวัสดีครับผมชื่อสมชายครับ" * 3
    (windows,) = task.windows(cut.text, "", [text])
    (words,) = task.targets([Example(text)], [windows])
    real = words[words >= 0]
    assert len(real) > LONGEST and len(set(real)) == len(real)


def test_of_masked_tokens_80_10_and_10_percent():
    vocabulary = Vocabulary(mask=9, size=1000, special=(0, 1, 2, 9, 999))
    tokens = np.full(50_000, 500)
    found = vocabulary.replaced(tokens, np.random.default_rng(0))
    assert (found == 9).mean() == pytest.approx(0.8, abs=0.01)
    assert (found == 500).mean() == pytest.approx(0.1, abs=0.01)
    others = found[(found != 9) & (found != 500)]
    assert not set(others) & {0, 1, 2, 9, 999}
    assert {3, 998} <= set(others) and len(set(others)) > 900


def test_a_window_is_masked_anew_by_seed_and_alike_wherever_it_stands(cut):
    task = MaskedLanguage()
    adapter = ax.Adapter.new(cut, task, None, name="x")
    rows = EncodedRows.of(cut, adapter, task, RECORDS)
    (ids, targets), (other, _) = rows.drawn(np.arange(4), (0, 1)), rows.drawn(np.arange(4), (0, 2))
    assert all(a != b for a, b in zip(ids, other, strict=True))
    for row in range(4):
        (alone,), (target,) = rows.drawn(np.array([row]), (0, 1))
        assert alone == ids[row] and (target == targets[row]).all()
    fixed, again = rows.batch(np.arange(4)), rows.batch(np.arange(4))
    assert (fixed[0].input_ids == again[0].input_ids).all()


@seeded
@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=12).map(" ".join), st.integers(19, 64))
def test_a_long_text_is_cut_into_windows_and_nothing_lost(cut, text, limit):
    (windows,) = MaskedLanguage().windows(cut.text, cut.prefix, [text], limit)
    frame = cut.text.tokenizer.encode("").ids
    inner = [token for window in windows for token in window.ids[1:-1]]
    assert inner == cut.text.tokenizer.encode(cut.prefix + text, add_special_tokens=False).ids
    assert all([w.ids[0], w.ids[-1]] == frame and len(w.ids) <= limit for w in windows)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("at_once", [1, 7 * 50, 1 << 20])
def test_losses_by_parts_are_torchs_with_all_logits(monkeypatch, smoothing, at_once):
    monkeypatch.setattr(masked_language, "LOGITS", at_once)
    random = torch.Generator().manual_seed(2)
    states = torch.randn(20, 8, generator=random).requires_grad_()
    table = torch.randn(50, 8, generator=random)
    gold = torch.randint(50, (20,), generator=random)
    weights = torch.rand(20, generator=random)
    found = tied_losses(states, table, gold, smoothing)
    (gradient,) = torch.autograd.grad((found * weights).sum(), states)
    wanted = cross_entropy(states @ table.T, gold, reduction="none", label_smoothing=smoothing)
    (wanted_gradient,) = torch.autograd.grad((wanted * weights).sum(), states)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradient, wanted_gradient)
    assert len(tied_losses(states[:0], table, gold[:0])) == 0


def test_the_loss_and_its_gradient_are_those_of_transformers_model(small):
    """BertForMaskedLM on the same weights, its transform replaced by the head."""
    task = MaskedLanguage()
    adapter = ax.Adapter.new(small, task, None, name="x", seed=3).requires_grad_()
    config = BertConfig(**{**small.config.to_dict(), "tie_word_embeddings": True})
    model = BertForMaskedLM(config).eval()
    model.bert.load_state_dict(plain_copy(small.model, {}).state_dict())
    model.tie_weights()
    model.cls.predictions.transform = nn.Linear(config.hidden_size, config.hidden_size)
    model.cls.predictions.transform.load_state_dict(adapter.head.state_dict())
    model.cls.predictions.bias.data.zero_()
    model.cls.predictions.decoder.bias.data.zero_()
    rows = EncodedRows.of(small, adapter, task, RECORDS)
    batch, targets, _ = rows.batch(np.arange(4), (1,))
    ids, mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
    wanted = model(ids, mask, labels=torch.from_numpy(targets)).loss
    outputs = adapter.outputs(adapter.hidden(small, ids, mask), mask)
    losses = task.losses(outputs, torch.from_numpy(targets), table=small.table)
    weights = torch.from_numpy(task.weights(targets))
    found = (losses * weights).sum() / weights.sum()
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    found.backward()
    wanted.backward()
    transform = model.cls.predictions.transform
    torch.testing.assert_close(
        adapter.head.weight.grad, transform.weight.grad, rtol=1e-3, atol=1e-6
    )
    torch.testing.assert_close(adapter.head.bias.grad, transform.bias.grad, rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def trained(cut):
    return ax.train(
        cut, MaskedLanguage(), LORA, name="sw", train=RECORDS * 24, dev=RECORDS, epochs=8, lr=1e-2,
        batch_size=8, precision="no",
    )  # fmt: skip


def test_it_learns_and_keeps_the_epoch_of_the_lowest_perplexity(trained, cut):
    history = trained.facts.training["history"]
    perplexities = [entry["perplexity"] for entry in history]
    assert perplexities == pytest.approx([math.exp(entry["dev_loss"]) for entry in history])
    best = trained.facts.training["best"]
    assert best["perplexity"] == min(perplexities) < perplexities[0] / 5
    assert perplexities[0] < len(cut.table) < 2 * perplexities[0]  # it began knowing nothing
    assert trained.facts.training["settings"]["metric"] == "perplexity"


def test_devs_perplexity_is_by_token_not_by_row(trained, cut):
    rows = EncodedRows.of(cut, trained, trained.task, RECORDS)
    losses = []
    for row in range(len(rows)):
        batch, targets, _ = rows.batch(np.array([row]))
        ids, mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
        with torch.no_grad():
            logits = trained.outputs(trained.hidden(cut, ids, mask), mask) @ cut.table.T
        places = targets[0] != IGNORED
        gold = torch.from_numpy(targets[0][places])
        losses += cross_entropy(logits[0, places], gold, reduction="none").tolist()
    wanted = trained.facts.training["best"]["perplexity"]
    assert math.exp(np.mean(losses)) == pytest.approx(wanted, rel=1e-3)


def test_its_folder_opens_again_and_its_card_says_what_it_is(trained, cut, tmp_path):
    trained.save(tmp_path / "sw")
    again = ax.Adapter.load(tmp_path / "sw", cut)
    assert again.task == trained.task
    ids, mask = torch.tensor([[0, 9, 11, 2]]), torch.ones(1, 4, dtype=torch.long)
    with torch.no_grad():
        found, wanted = (a.outputs(a.hidden(cut, ids, mask), mask) for a in (again, trained))
    torch.testing.assert_close(found, wanted)
    card = (tmp_path / "sw" / "README.md").read_text()
    assert "perplexity" in card and "encoder.predict" not in card
    assert not re.search(r"linear head|adaptx predict", card)


def test_it_answers_nothing_and_exports_say_so_before_any_work(trained, cut, tmp_path):
    from adaptx.evaluation.evaluate import evaluate

    for ask in (
        lambda: cut.predict(["Habari"], trained),
        lambda: evaluate(cut, trained, RECORDS),
        lambda: ax.export(cut, [trained], tmp_path / "bundle"),
        lambda: ax.export_merged(cut, trained, tmp_path / "merged"),
    ):
        with pytest.raises(OptionError, match=r"'sw'.*'masked-language'.*training alone"):
            ask()
    assert not (tmp_path / "bundle").exists() and not (tmp_path / "merged").exists()


def test_a_bundle_that_runs_refuses_it_too(trained, cut, tmp_path):
    task = ax.tasks.Classification(("a", "b"))
    ax.export(cut, [ax.Adapter.new(cut, task, None, name="plain")], tmp_path / "bundle")
    trained.save(tmp_path / "sw")
    refused = pytest.raises(FolderError, match="training alone")
    with Runtime.open(tmp_path / "bundle") as runtime, refused:
        runtime.add(tmp_path / "sw")


def test_folded_into_the_encoder_it_is_an_encoder_to_train_on(trained, cut, tmp_path):
    shutil.copytree(cut.folder, tmp_path / "sw")
    trained.merged_model(cut).save_pretrained(tmp_path / "sw")
    again = ax.Encoder.from_pretrained(tmp_path / "sw", prefix=cut.prefix)
    (ids,) = cut.text.ids([cut.prefix + TEXTS[0]])
    ids, mask = torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long)
    with torch.no_grad():
        wanted = trained.hidden(cut, ids, mask).mean(1)[0]
    torch.testing.assert_close(torch.from_numpy(again.embed(TEXTS[:1])[0]), wanted)


def test_it_trains_among_others_in_one_job_as_alone(trained, cut):
    settings = {"epochs": 2, "lr": 1e-2, "batch_size": 8}
    topics = [Example(text, str(i % 2)) for i, text in enumerate(TEXTS)]
    members = [
        Member(
            "sw", LORA, train=RECORDS * 24, dev=RECORDS, task=MaskedLanguage(), settings=settings
        ),
        Member("topics", LORA, train=topics * 4, task=ax.tasks.Classification(), settings=settings),
    ]
    found = train_many(cut, members, precision="no").adapters["sw"]
    alone = ax.train(
        cut, MaskedLanguage(), LORA, name="sw", train=RECORDS * 24, dev=RECORDS, precision="no",
        **settings,
    )  # fmt: skip
    histories = (one.facts.training["history"] for one in (found, alone))
    for one, two in zip(*histories, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-3)
        assert one["perplexity"] == pytest.approx(two["perplexity"], rel=1e-2)


def test_a_large_file_teaches_what_it_teaches_in_memory(cut, tmp_path, monkeypatch):
    """Rows of one length, so that sorting by length changes no batch."""
    orders = [
        " ".join(words) for words in itertools.permutations(["samaki", "mkeka", "bibi", "mvua"])
    ]
    path = tmp_path / "sw.txt"
    path.write_text("\n".join(orders), encoding="utf-8")
    assert len({len(ids) for ids in cut.text.ids(orders)}) == 1

    def losses():
        adapter = ax.train(
            cut, MaskedLanguage(), LORA, name="sw", train=path, epochs=2, batch_size=8, lr=1e-2,
            precision="no",
        )  # fmt: skip
        return [entry["loss"] for entry in adapter.facts.training["history"]]

    in_memory = losses()
    monkeypatch.setattr(large, "LARGE", 0)
    assert isinstance(large.open_records(path, "masked-language"), large.IndexedExamples)
    assert losses() == in_memory


def test_a_row_of_a_large_file_counts_once_however_many_windows_it_has(cut, tmp_path):
    path = tmp_path / "sw.txt"
    path.write_text(f"{' '.join(TEXTS * 3)}\n\n{TEXTS[0]}\n", encoding="utf-8")
    task = MaskedLanguage()
    adapter = ax.Adapter.new(cut, task, None, name="x")
    rows = training_rows(cut, adapter, task, large.IndexedExamples(path, task="masked-language"))
    assert len(rows) == 2
    batch, targets, shares = rows.batch(np.array([0, 1]), (0, 1))
    in_memory = EncodedRows.of(cut, adapter, task, large.open_records(path, "masked-language"))
    assert len(in_memory) == len(batch.input_ids) > 2
    assert shares[:-1].sum() == pytest.approx(1) and shares[-1] == 1
    whole, wanted, _ = in_memory.batch(np.arange(len(in_memory)), (0, 1))
    assert (batch.input_ids == whole.input_ids).all() and (targets == wanted).all()


def test_a_tokenizer_without_a_mask_token_is_refused():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    text = TextEncoder(tokenizer, pad_id=0, max_length=64)
    with pytest.raises(OptionError, match="no mask token"):
        MaskedLanguage().windows(text, "", ["a"])


def test_texts_of_which_nothing_is_left_are_refused(cut):
    records = [Example("\x01", None, "a.txt", 3)]
    windows = MaskedLanguage().windows(cut.text, "", [one.text for one in records])
    assert all(len(window.ids) == 2 for its in windows for window in its)
    with pytest.raises(DataError, match=r"a\.txt, line 3: no text here becomes a token"):
        MaskedLanguage().targets(records, windows)


def test_of_trials_the_lower_perplexity_is_the_better():
    good, bad = (
        Trial(0, 1, 1e-3, 8, "all-linear", {"perplexity": p, "dev_loss": 1.0}) for p in (5.0, 50.0)
    )
    assert good.rank("perplexity") > bad.rank("perplexity")


def test_fsdp_which_divides_the_embeddings_is_refused(trained, cut, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    processes = SimpleNamespace(num_processes=2, device=cut.device)
    with pytest.raises(OptionError, match="needs whole"):
        place(cut, trained, processes)
