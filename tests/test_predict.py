import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig

from adaptx import Adapter, Encoder, tasks
from adaptx.errors import FingerprintError, OptionError
from adaptx.tasks import Prediction

TEXTS = [
    "Nimefurahi sana leo.",
    "Adé lọ sí Ìbàdàn",
    "Why?",
    "Треугольник имеет три стороны и три угла, а квадрат четыре.",
    "今天天气很好，我们去公园吧。",
    "ሰላም ለዓለም",
    "a much longer English sentence, which makes every other row of its batch carry padding",
]


def make(encoder, name, seed, labels=("a", "b", "c"), pooling="mean"):
    config = LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear")
    task = tasks.Classification(labels, pooling) if labels else None
    return Adapter.new(encoder, task, config, name=name, seed=seed)


def numbers(answer):
    if isinstance(answer, Prediction):
        return np.array(list(answer.scores.values()))
    return answer


@pytest.fixture(scope="module")
def adapters(small):
    return [
        None,
        make(small, "one", 1),
        make(small, "two", 2, ("x", "y"), "cls"),
        make(small, "bare", 3, None),
    ]


def test_each_row_answers_with_its_own_adapters_labels(small, adapters):
    answers = small.predict(TEXTS[:4], adapters)
    assert isinstance(answers[0], np.ndarray)
    assert set(answers[1].scores) == {"a", "b", "c"}
    assert set(answers[2].scores) == {"x", "y"}
    assert answers[3].shape == (32,)
    assert np.abs(answers[3] - small.predict([TEXTS[3]])[0]).max() > 1e-3


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    rows=st.lists(st.tuples(st.sampled_from(TEXTS), st.integers(0, 3)), min_size=1, max_size=9),
    batch_size=st.integers(1, 9),
)
def test_a_rows_answer_depends_on_no_neighbour_and_no_padding(small, adapters, rows, batch_size):
    texts, chosen = [text for text, _ in rows], [adapters[i] for _, i in rows]
    together = small.predict(texts, chosen, batch_size=batch_size)
    for text, adapter, answer in zip(texts, chosen, together, strict=True):
        alone = small.predict([text], [adapter])[0]
        np.testing.assert_allclose(numbers(answer), numbers(alone), rtol=1e-4, atol=1e-5)


def test_the_real_encoder_is_row_independent_too(encoder):
    chosen = [None, make(encoder, "one", 1), make(encoder, "two", 2)]
    rows = [chosen[i % 3] for i in range(len(TEXTS))]
    together = encoder.predict(TEXTS, rows)
    for text, adapter, answer in zip(TEXTS, rows, together, strict=True):
        alone = encoder.predict([text], [adapter])[0]
        np.testing.assert_allclose(numbers(answer), numbers(alone), rtol=1e-4, atol=1e-5)


def test_one_adapter_stands_for_all_rows(small, adapters):
    one = adapters[1]
    wanted = [numbers(a) for a in small.predict(TEXTS, [one] * len(TEXTS))]
    for given_ in (one, [one]):
        found = [numbers(a) for a in small.predict(TEXTS, given_)]
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_embed_is_the_mean_of_the_states_that_arent_padding(small):
    ids = small.text.ids([small.prefix + TEXTS[3]])
    batch = small.text.batch(ids, [0])
    import torch

    with torch.no_grad():
        states = small.hidden(
            torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
        )
    vector = small.embed(TEXTS)[3]
    np.testing.assert_allclose(vector, states[0].mean(0).numpy(), rtol=1e-4, atol=1e-5)
    assert small.embed([]).shape == (0, 32)


def test_max_length_truncates_as_the_adapter_was_trained(small):
    task = tasks.Classification(("a", "b"))
    short = Adapter.new(small, task, None, name="short", max_length=5)
    long_text = " ".join(["neno"] * 40)
    cut = small.predict([long_text], short)[0]
    assert cut.scores == small.predict([long_text + " na mengine"], short)[0].scores


def test_texts_and_adapters_must_fit_together(small, adapters):
    with pytest.raises(OptionError, match="2 adapters for 3 texts"):
        small.predict(TEXTS[:3], adapters[:2])
    with pytest.raises(OptionError, match="list of texts"):
        small.predict("one text")
    assert small.predict([]) == []


def test_an_adapter_of_another_encoder_is_refused_with_both_fingerprints(small, small_folders):
    other = Encoder.from_pretrained(small_folders["xlm-roberta"])
    adapter = make(other, "other", 1)
    with pytest.raises(FingerprintError) as caught:
        small.predict(["Habari"], adapter)
    assert other.fingerprint in str(caught.value)
    assert small.fingerprint in str(caught.value)


def test_an_e5_encoder_takes_its_prefix_and_others_none(encoder, small):
    assert encoder.prefix == "query: "
    assert small.prefix == ""
