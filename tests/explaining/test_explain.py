"""Explanations against independent computations: formulas by hand, predict on shorter texts."""

import json
import re

import numpy as np
import peft
import pytest
import torch
from peft import LoraConfig

import adaptx as ax
from adaptx.data.windows import located
from adaptx.errors import OptionError
from adaptx.explaining.page import explanation_page, table
from adaptx.explaining.show import notes
from adaptx.explaining.words import shares, without, words_of
from adaptx.tasks.summarization import Summary
from adaptx.tasks.target import moved
from tests.encoder.families import CONFIGS

TEXT = "Timu ya Mbeya imeshinda fainali, jana."
EVERYWHERE = LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear")
LABELS = ("afya", "michezo", "siasa")
TASKS = {
    "classification": (ax.tasks.Classification(LABELS), TEXT),
    "multi-label": (ax.tasks.MultiLabel(LABELS), TEXT),
    "pairs": (ax.tasks.PairClassification(LABELS), ("Mvua inanyesha", "Ardhi imelowa sana")),
    "similarity": (ax.tasks.Similarity(2.5, 1.2), ("Mvua inanyesha", "Ardhi imelowa sana")),
    "token-classification": (ax.tasks.TokenClassification(("O", "B-LOC", "I-LOC")), TEXT),
    "plain tags": (ax.tasks.TokenClassification(("NOUN", "VERB"), scheme="plain"), TEXT),
    "question-answering": (ax.tasks.QuestionAnswering(), ("Wapi?", "Timu ya Mbeya imeshinda.")),
    "summary": (ax.tasks.Summarization(length=2), f"{TEXT} Mvua ilinyesha.\nJua liliwaka leo."),
    "retrieval": (ax.tasks.Retrieval(), ("Mvua inanyesha sana", "Ardhi imelowa")),
}


def adapter_for(encoder, task, config=EVERYWHERE, sharp=8):
    made = ax.Adapter.new(encoder, task, config, name="x", seed=1)
    if made.head is not None:
        made.head.weight.data *= sharp
    return made.eval()


def log_odds(p):
    return np.log(p) - np.log1p(-p)


def score_of(answer, explained):
    """The explained number, from what predict answers."""
    if isinstance(answer, np.ndarray):
        return float(answer[0] @ answer[1])
    if explained.unit == "score":
        return answer.score
    if isinstance(answer, Summary):
        return log_odds(max(sentence.score for sentence in answer.sentences))
    return log_odds(answer.scores[explained.label])


@pytest.mark.parametrize("name", TASKS)
def test_contributions_add_up_and_the_score_is_the_answers(small, name):
    task, one = TASKS[name]
    adapter = adapter_for(small, task)
    found = ax.explain(small, adapter, one, steps=300)
    total = sum(word.gradients for word in found.words)
    assert total == pytest.approx(found.score - found.baseline, abs=2e-3)
    assert sum(token.gradients for token in found.tokens) == pytest.approx(total, abs=1e-9)
    assert found.gap == pytest.approx(found.score - found.baseline - total, abs=1e-9)
    (answer,) = small.predict([one], adapter)
    if name == "question-answering":
        assert (found.label, found.probability) == (answer.text, pytest.approx(answer.score))
    elif isinstance(task, ax.tasks.TokenClassification):
        assert found.label.split(" at ")[0] in answer.tags
    else:
        assert found.score == pytest.approx(score_of(answer, found), abs=1e-4)
    for word in found.words:
        assert found.texts[word.which][word.start : word.end] == word.text
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize("name", ["classification", "multi-label", "pairs", "similarity"])
def test_leaving_out_is_predict_on_the_text_without_the_word(small, name):
    task, one = TASKS[name]
    adapter = adapter_for(small, task)
    found = ax.explain(small, adapter, one, steps=2)
    texts = one if isinstance(one, tuple) else (one,)
    for word in found.words:
        # Words are told from each other by spaces, but for the marks behind two of them.
        rest = re.sub(rf"\s?{re.escape(word.text)}(?=\W|$)", "", texts[word.which], count=1).strip()
        shorter = rest if isinstance(one, str) else tuple(
            rest if i == word.which else text for i, text in enumerate(texts)
        )  # fmt: skip
        (answer,) = small.predict([shorter], adapter)
        wanted = found.score - score_of(answer, found)
        assert word.left_out == pytest.approx(wanted, abs=1e-4), word
        if found.probability is not None:
            wanted = found.probability - answer.scores[found.label]
            assert word.left_out_probability == pytest.approx(wanted, abs=1e-5)


def test_a_score_that_is_linear_in_the_embeddings_is_explained_exactly(small):
    """An oracle without integrals: w . mean(e) falls apart into w . (e_s - pad) / S."""
    from adaptx.explaining.gradients import integrated_gradients

    adapter = adapter_for(small, TASKS["classification"][0], None)
    ids = small.text.ids([small.prefix + TEXT])[0]
    of_text = np.array([False, *[True] * (len(ids) - 2), False])
    weight = torch.randn(small.hidden_size, generator=torch.Generator().manual_seed(3))

    class Flat(torch.nn.Module):
        """An encoder whose states are the embeddings themselves."""

        def get_input_embeddings(self):
            return small.model.get_input_embeddings()

        def forward(self, inputs_embeds, **others):
            return (inputs_embeds,)

    adapter.model = Flat()
    adapter.head.weight.data[0] = weight
    found = integrated_gradients(
        small, adapter, ids, of_text, lambda out: out[:, 0].double(), steps=1, batch_size=1
    )
    embeddings = small.model.get_input_embeddings().weight
    wanted = (embeddings[ids] - embeddings[small.text.pad_id]) @ weight / len(ids) * of_text
    assert found.tokens_S == pytest.approx(wanted.numpy(), abs=1e-5)
    assert found.gap == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("family", sorted(set(CONFIGS) - {"bert"}))
def test_every_family_is_explained(small_folders, family):
    encoder = ax.Encoder.from_pretrained(small_folders[family])
    found = ax.explain(
        encoder,
        adapter_for(encoder, TASKS["classification"][0]),
        "Habari yako",
        steps=1000,
        batch_size=250,
    )
    (answer,) = encoder.predict(["Habari yako"], adapter_for(encoder, TASKS["classification"][0]))
    assert found.probability == pytest.approx(answer.score, abs=1e-5)
    assert found.close
    assert len(found.layers) == encoder.config.num_hidden_layers
    assert len(found.sites) == len(encoder.sites)


def test_layers_and_sites_are_those_of_the_states_and_weights(small):
    adapter = adapter_for(small, TASKS["classification"][0])
    found = ax.explain(small, adapter, TEXT, steps=1)
    ids = torch.tensor(small.text.ids([small.prefix + TEXT]))
    mask = torch.ones_like(ids)
    merged = adapter.merged_model(small)
    with torch.no_grad():
        with_it = merged(ids, mask, output_hidden_states=True).hidden_states
        without_it = small.model(ids, mask, output_hidden_states=True).hidden_states
    wanted = [
        float((a - b).norm() / b.norm()) for a, b in zip(with_it[1:], without_it[1:], strict=True)
    ]
    assert found.layers == pytest.approx(wanted, abs=1e-4)
    first = next(site for site in found.sites if site.site.endswith("layer.0.attention.self.query"))
    base = small.sites[first.site].base
    delta = adapter.deltas()[first.site]
    assert first.weight == pytest.approx(float(delta.norm() / base.weight.norm()))
    x = without_it[0]
    with torch.no_grad():
        assert first.output == pytest.approx(float((x @ delta.T).norm() / base(x).norm()), abs=1e-5)


def test_a_probe_changes_nothing_and_is_explained(small):
    found = ax.explain(small, adapter_for(small, TASKS["classification"][0], None), TEXT, steps=50)
    assert (found.layers, found.sites) == ((), ())
    assert found.close


@pytest.mark.parametrize(
    "config",
    [peft.LoraConfig(r=4, use_dora=True, target_modules=["query"]), ax.Full()],
    ids=["dora", "full"],
)
def test_an_adapter_with_a_model_of_its_own_is_explained(small, config):
    adapter = adapter_for(small, TASKS["classification"][0], config)
    for name, tensor in adapter.model.named_parameters():
        if "lora_B" in name or "output.dense.bias" in name:
            tensor.data += 0.1
    found = ax.explain(small, adapter, TEXT, steps=100)
    (answer,) = small.predict([TEXT], adapter)
    assert found.probability == pytest.approx(answer.score, abs=1e-5)
    assert found.close
    assert all(change > 0 for change in found.layers) and found.sites == ()


def test_any_label_span_and_word_can_be_explained(small):
    adapter = adapter_for(small, TASKS["classification"][0])
    (answer,) = small.predict([TEXT], adapter)
    for label in LABELS:
        found = ax.explain(small, adapter, TEXT, label=label, steps=1)
        assert found.probability == pytest.approx(answer.scores[label], abs=1e-5)

    task, one = TASKS["question-answering"]
    found = ax.explain(small, adapter_for(small, task), one, label="Mbeya", steps=1)
    assert [w.left_out for w in found.words if w.text == "Mbeya"] == [None]  # it is the span
    assert sum(w.left_out is None for w in found.words) == 1

    task, one = TASKS["token-classification"]
    tagger = adapter_for(small, task)
    for word in ("Mbeya", "3"):
        found = ax.explain(small, tagger, one, label="B-LOC", word=word, steps=1)
        assert found.label == "B-LOC at 'Mbeya'"
    listed = ax.explain(small, tagger, one.split(), label="B-LOC", word="Mbeya", steps=1)
    assert [w.text for w in listed.words] == one.split()


def test_the_tag_that_is_explained_is_read_at_the_words_first_token(small):
    task, one = TASKS["token-classification"]
    tagger = adapter_for(small, task)
    found = ax.explain(small, tagger, one, label="B-LOC", word="Mbeya", steps=1)
    ids = torch.tensor(small.text.ids([small.prefix + one]))
    tokens = [small.text.tokenizer.id_to_token(i) for i in ids[0].tolist()]
    with torch.no_grad():
        logits = tagger.outputs(
            tagger.hidden(small, ids, torch.ones_like(ids)), torch.ones_like(ids)
        )
    first = next(i for i, token in enumerate(tokens) if token.startswith("▁M"))
    p = torch.softmax(logits[0, first].double(), 0)[1]
    assert found.probability == pytest.approx(float(p), abs=1e-5)


def test_any_sentence_can_be_explained_and_what_is_left_of_it(small):
    one, adapter = TASKS["summary"][1], adapter_for(small, ax.tasks.Summarization(length=3))
    (answer,) = small.predict([one], adapter)
    shorter = {"Timu": one.removeprefix("Timu "), "leo": one.replace(" leo", "")}
    less = dict(zip(shorter, small.predict(list(shorter.values()), adapter), strict=True))
    for i, sentence in enumerate(answer.sentences):
        found = ax.explain(small, adapter, one, label=sentence.text, steps=1)
        assert found.probability == pytest.approx(sentence.score, abs=1e-5)
        left_out = {word.text: word.left_out for word in found.words}
        for word in shorter:
            wanted = log_odds(sentence.score) - log_odds(less[word].sentences[i].score)
            assert left_out[word] == pytest.approx(wanted, abs=1e-4)


def test_a_long_documents_sentence_is_read_in_the_window_that_has_it(small):
    document = " ".join(f"Neno la {i} ni hili." for i in range(40)) + " Mbeya imeshinda."
    adapter = adapter_for(small, ax.tasks.Summarization(length=41))
    found = ax.explain(small, adapter, document, label="Mbeya imeshinda.", steps=1)
    assert found.window == found.windows > 1
    (answer,) = small.predict([document], adapter)
    assert found.probability == pytest.approx(answer.sentences[-1].score, abs=1e-5)


def test_a_long_text_is_explained_in_the_window_that_answers(small):
    passage = " ".join(f"neno{i}" for i in range(60)) + " Mbeya imeshinda."
    adapter = adapter_for(small, TASKS["question-answering"][0])
    found = ax.explain(small, adapter, ("Wapi?", passage), label="Mbeya", steps=200)
    assert found.windows > 1 and found.window == found.windows
    unread = [word for word in found.words if word.gradients is None]
    assert unread and all(word.which == 1 and word.left_out is None for word in unread)
    total = sum(word.gradients or 0 for word in found.words)
    assert total == pytest.approx(found.score - found.baseline, abs=0.02)


def test_what_has_no_score_is_refused(small):
    vectors = adapter_for(small, ax.tasks.Retrieval())
    topics = adapter_for(small, TASKS["classification"][0])
    tags = adapter_for(small, TASKS["token-classification"][0])
    answers = adapter_for(small, TASKS["question-answering"][0])
    summary = adapter_for(small, ax.tasks.Summarization())
    bare = ax.Adapter.new(small, None, None, name="bare")
    for adapter, text, options, said in (
        (vectors, "Habari", {}, "Give a second text"),
        (bare, "Habari", {}, "a vector, which has no score"),
        (topics, "Habari", {"label": "x"}, "none of this adapter's: afya, michezo, siasa"),
        (topics, "Habari", {"word": "Habari"}, "tags none"),
        (topics, " ", {}, "no word"),
        (topics, "Habari", {"steps": 0}, "at least 1"),
        (tags, "Habari", {"word": "yako"}, "none of the text's"),
        (tags, "", {}, "no word"),
        (answers, ("Nani?", "Asha."), {"label": "Juma"}, "doesn't stand in the passage"),
        (vectors, ("a", "b"), {"label": "x"}, "which has no label"),
        (summary, "Habari. Asante.", {"label": "Asha."}, "is no sentence of the document"),
        (summary, ["Habari.", "Asante."], {}, "explained as one text"),
        (summary, " ", {}, "no sentence"),
    ):
        with pytest.raises(OptionError, match=re.escape(said)):
            ax.explain(small, adapter, text, **options)


def test_tokens_are_found_in_both_texts_however_they_were_cut(small):
    long = " ".join(f"neno{i}" for i in range(40))
    for kind in ("pairs", "question-answering"):
        adapter = adapter_for(small, TASKS[kind][0])
        for one in (
            ("Habari </s> yako", "nzuri sana"),
            ("Habari", long),
            (long, "Nzuri"),
            (long, long),
        ):
            for window in adapter.windows(small.text, [one])[0]:
                places = located(small.text, "", one, window)
                tokens = [small.text.tokenizer.id_to_token(i) for i in window.ids]
                for token, (which, start, end) in zip(tokens, places, strict=True):
                    said = one[which][start:end].strip() if which >= 0 else ""
                    assert said == token.replace("▁", "") or (
                        which < 0 and token in ("<s>", "</s>")
                    )
                assert (places[:, 0] == 0).any() and (places[:, 0] == 1).any()


def test_words_of_scripts_without_spaces_are_tokens(small):
    text = "我们的球队赢得了决赛"
    words = words_of(text, small.text.tokenizer)
    assert len(words) > 2 and "".join(word.text for word in words) == text
    tagger = adapter_for(small, TASKS["plain tags"][0])
    (answer,) = small.predict([text], tagger)
    found = ax.explain(small, tagger, text, word=answer.words[1], steps=2)
    assert found.label == f"{answer.tags[1]} at {answer.words[1]!r}"
    assert tuple(word.text for word in found.words) == answer.words
    with pytest.raises(OptionError, match="no tag to explain"):
        ax.explain(small, tagger, ["\u200b", "mtu"], steps=2)


def test_a_token_of_two_words_is_shared_by_their_characters(small):
    words = words_of("ab, c", small.text.tokenizer)
    assert [w.text for w in words] == ["ab", ",", "c"]
    found = shares(words, np.array([[-1, -1, -1], [0, 0, 3], [0, 3, 4], [0, 4, 5]]))
    assert found == pytest.approx(np.array([[0, 0, 0], [2 / 3, 1 / 3, 0], [0, 0, 1], [0, 0, 1]]))


def test_a_word_goes_with_its_space(small):
    words = words_of("Timu imeshinda, jana", small.text.tokenizer)
    left = [without("Timu imeshinda, jana", words, i)[0] for i in range(4)]
    assert left == ["imeshinda, jana", "Timu, jana", "Timu imeshinda jana", "Timu imeshinda,"]
    assert moved((5, 9), (0, 5)) == (0, 4)
    assert moved((0, 4), (5, 9)) == (0, 4)
    assert moved((2, 8), (4, 6)) == (2, 6)
    assert moved((2, 4), (1, 5)) is None


def test_a_page_escapes_what_it_shows_and_needs_nothing_from_elsewhere(small):
    text = "Timu <script>alert(1)</script> & \"ndiyo\" 'la'"
    task = ax.tasks.Classification(("<b>a</b>", 'x" onclick="y'))
    html = explanation_page(ax.explain(small, adapter_for(small, task), text, steps=2))
    assert "<script" not in html.lower()
    assert "<b>a" not in html and 'x" onclick' not in html
    assert not re.search(r"(src|href)=|url\(|@import|https?:", html)
    assert 'lang="en"' in html and "prefers-color-scheme: dark" in html
    shown = re.sub(r"<[^>]+>", "", html.split('class="text" dir="auto">')[1].split("</p>")[0])
    assert shown == text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace(
        '"', "&quot;"
    ).replace("'", "&#x27;")
    assert table("a<", ("b&",), [("c>",), (None,)]).count("&") == 3


def test_a_pair_may_be_a_list_and_words_a_tuple(small):
    pairs = adapter_for(small, TASKS["pairs"][0])
    one = TASKS["pairs"][1]
    assert ax.explain(small, pairs, list(one), steps=2) == ax.explain(small, pairs, one, steps=2)
    tagger = adapter_for(small, TASKS["plain tags"][0])
    found = ax.explain(small, tagger, tuple(TEXT.split()), word="Mbeya", steps=2)
    assert [word.text for word in found.words] == TEXT.split()
    assert found.texts == (TEXT,)


def test_the_end_of_a_text_that_is_cut_has_no_figures(small):
    text = " ".join(f"neno{i}" for i in range(60))
    found = ax.explain(small, adapter_for(small, TASKS["classification"][0]), text, steps=2)
    read = [word.gradients is not None for word in found.words]
    assert read == sorted(read, reverse=True) and 0 < sum(read) < 60
    assert all((w.left_out is None) == (w.gradients is None) for w in found.words)
    assert "its end has no figures" in " ".join(notes(found))
    assert len(found.tokens) == small.text.max_length
