"""Every task all the way: data, training, the folder, torch, the one graph, the runtime."""

import numpy as np
import pytest
from peft import LoraConfig

import adaptx as ax
from adaptx.data.records import Document, Example, Labelled, Pair, Passage, Tagged
from adaptx.errors import OptionError
from adaptx.evaluation.evaluate import evaluate
from adaptx.runtime import Runtime
from adaptx.tasks.multi_label import Labels
from adaptx.tasks.question_answering import Span
from adaptx.tasks.token_classification import Tags
from tests.encoder.families import write_encoder

TOWNS, VERBS = ("Nairobi", "Dodoma", "Kampala", "Kigali"), ("imefika", "anakaa", "walikwenda")
SENTENCES = [f"{verb} katika {town} leo" for verb in VERBS for town in TOWNS]


def tagged(sentence):
    words = tuple(sentence.split())
    return Tagged(words, tuple("B-LOC" if word in TOWNS else "O" for word in words))


def passage(number, sentence):
    town = next(town for town in TOWNS if town in sentence)
    return Passage(str(number), "Wapi?", sentence, ((town, sentence.index(town)),))


TASKS = {
    "topics": (
        ax.tasks.Classification(),
        [Example(s, VERBS[i // 4]) for i, s in enumerate(SENTENCES)],
    ),
    "several": (
        ax.tasks.MultiLabel(),
        [Labelled(s, (VERBS[i // 4], TOWNS[i % 4])) for i, s in enumerate(SENTENCES)],
    ),
    "same": (
        ax.tasks.PairClassification(),
        [
            Pair(s, o, "yes" if i % 4 == j % 4 else "no")
            for i, s in enumerate(SENTENCES[:4])
            for j, o in enumerate(SENTENCES[4:8])
        ],
    ),
    "names": (ax.tasks.TokenClassification(), [tagged(s) for s in SENTENCES]),
    "answers": (
        ax.tasks.QuestionAnswering(),
        [passage(i, s) for i, s in enumerate(SENTENCES)],
    ),
    "nearness": (
        ax.tasks.Similarity(),
        [
            Pair(s, o, str(5 if i % 4 == j % 4 else 1 + (i + j) % 2))
            for i, s in enumerate(SENTENCES[:4])
            for j, o in enumerate(SENTENCES[4:8])
        ],
    ),
    "vectors": (
        ax.tasks.Retrieval(dimensions=(32, 16)),
        [
            Pair(a, b, negatives=tuple(SENTENCES[8 : 8 + i]))
            for i, (a, b) in enumerate(zip(SENTENCES[:4], SENTENCES[4:8], strict=True))
        ],
    ),
}
WEATHER = ("Mvua imenyesha.", "Jua linawaka.", "Upepo unavuma.", "Ukungu umetanda.")
TASKS["summary"] = (
    ax.tasks.Summarization(length=1),
    [
        Document((*WEATHER[:i], sentence, *WEATHER[i:]), (*[False] * i, True, *[False] * (4 - i)))
        for i, sentence in enumerate(SENTENCES[:4])
    ],
)
INPUTS = {
    "topics": "walikwenda katika Kigali leo",
    "several": "anakaa katika Kampala leo",
    "same": ("imefika katika Dodoma leo", "anakaa katika Dodoma leo"),
    "names": "imefika katika Nairobi leo",
    "answers": ("Wapi?", "anakaa katika Dodoma leo"),
    "nearness": ("imefika katika Kigali leo", "anakaa katika Kigali leo"),
    "vectors": "anakaa katika Dodoma leo",
    "summary": f"{WEATHER[2]}\n{SENTENCES[1]}\n{WEATHER[0]}",
}

WRONG = {
    "topics": (("leo", "jana"), r"One text is needed .*'classification'; this is two: \('leo', 'j"),
    "several": (["leo", "jana"], "One text is needed"),
    "same": ("leo", "Two texts are needed, as .text, other.* this is one text: 'leo'"),
    "names": (("leo", "jana"), "A text, or a list of words, is needed"),
    "answers": ("Wapi?", "its passage are needed, .*; this is one text: 'Wapi"),
    "nearness": ("leo", "Two texts are needed"),
    "summary": (("leo", "jana"), "A text, or a list of its sentences, is needed"),
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = write_encoder(tmp_path_factory.mktemp("encoder") / "xlm-roberta", "xlm-roberta")
    return ax.Encoder.from_pretrained(folder, prefix="query: ")


@pytest.fixture(scope="module")
def adapters(encoder):
    found = {}
    for name, (task, records) in TASKS.items():
        found[name] = ax.train(
            encoder, task, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"), name=name,
            train=records, dev=records, epochs=60, lr=5e-3, batch_size=4, precision="no",
        )  # fmt: skip
    return found


@pytest.mark.parametrize("name", TASKS)
def test_it_learns_what_it_was_shown(adapters, encoder, name):
    """Of small data with a small random encoder, the task's first metric comes near to 1."""
    task, records = TASKS[name]
    best = adapters[name].facts.training["best"]
    metric = task.metrics[0]
    assert best[metric] > 0.8, best
    report = evaluate(encoder, adapters[name], records)
    assert report.scores[metric] == pytest.approx(best[metric])
    low, high = report.interval
    assert low <= report.scores[metric] <= high
    assert report.to_json()["rows"] == len(records)


@pytest.mark.parametrize("name", [*TASKS, "language"])
def test_records_of_another_task_are_refused(adapters, encoder, name):
    task, records = TASKS.get(name, (ax.tasks.MaskedLanguage(), [Example("Mvua inanyesha.")]))
    other = passage(0, SENTENCES[0]) if name != "answers" else tagged(SENTENCES[0])
    wrong = [records[0], other]
    said = f"{task.kind}.* class {type(records[0]).__name__} .* 2 is of {type(other).__name__}"
    for given in ({"train": wrong}, {"train": records, "dev": wrong}):
        with pytest.raises(OptionError, match=said):
            ax.train(encoder, task, None, name="x", **given)
    if name in adapters:
        with pytest.raises(OptionError, match=said):
            evaluate(encoder, adapters[name], wrong)
    if name in adapters and name != "vectors":
        with pytest.raises(OptionError, match=said):
            ax.audit(encoder, adapters[name], wrong, swaps=[("Dodoma", "Kigali")])


def test_each_answers_in_its_natural_shape(adapters, encoder):
    found = {n: encoder.predict([one], adapters[n])[0] for n, one in INPUTS.items()}
    assert found["topics"].label == "walikwenda"
    assert isinstance(found["several"], Labels) and "Kampala" in found["several"].labels
    assert found["same"].label == "yes"
    assert isinstance(found["names"], Tags)
    (entity,) = found["names"].entities
    assert (entity.label, entity.text, entity.start) == ("LOC", "Nairobi", 15)
    assert isinstance(found["answers"], Span) and found["answers"].text == "Dodoma"
    text = INPUTS["answers"][1]
    assert text[found["answers"].start : found["answers"].end] == "Dodoma"
    assert found["nearness"].score == pytest.approx(5, abs=1.5)
    (sentence,) = found["summary"].sentences
    assert (sentence.text, sentence.start) == (SENTENCES[1], len(WEATHER[2]) + 1)
    assert np.linalg.norm(found["vectors"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", WRONG)
def test_one_text_for_two_and_two_for_one_are_refused(adapters, encoder, name):
    one, said = WRONG[name]
    with pytest.raises(OptionError, match=said):
        encoder.predict([one], adapters[name])


@pytest.mark.parametrize("name", TASKS)
def test_a_folder_keeps_all_of_it(adapters, encoder, tmp_path, name):
    adapters[name].save(tmp_path / name)
    again = ax.Adapter.load(tmp_path / name, encoder)
    assert again.task == adapters[name].task
    assert same(
        encoder.predict([INPUTS[name]], again)[0],
        encoder.predict([INPUTS[name]], adapters[name])[0],
    )
    card = (tmp_path / name / "README.md").read_text()
    assert adapters[name].task.reads in card


def test_one_bundle_answers_all_in_one_mixed_batch_equal_to_torch(adapters, encoder, tmp_path):
    names, inputs = list(TASKS), list(INPUTS.values())
    wanted = encoder.predict(inputs, [adapters[name] for name in names])
    dev = {name: records for name, (_, records) in TASKS.items()}
    report = ax.export(
        encoder, list(adapters.values()), tmp_path / "bundle", quantize="fp32", dev=dev
    )
    assert all(abs(one["drop"]) < 1e-9 for one in report["dev"].values())
    with Runtime.open(tmp_path / "bundle") as runtime:
        mixed = runtime.predict(inputs, names)
        for name, one, found in zip(names, wanted, mixed, strict=True):
            assert same(found.value, one), name
            assert same(runtime.predict([INPUTS[name]], name)[0].value, one), name
        assert runtime.embed(["leo"], "names").shape == (1, encoder.hidden_size)
        text = "李明住在Nairobi。นายกเดินทางไปเชียงใหม่"
        (tags,) = encoder.predict([text], adapters["names"])
        assert len(tags.words) > 6 and "Nairobi" in tags.words
        assert runtime.predict([text], "names")[0].prediction.words == tags.words
        asked = (" ".join(["Wapi?"] * 40), "Dodoma")
        assert runtime.predict([asked], "answers")[0].truncated > 40
        with pytest.raises(OptionError, match=r"question of text 1 is \d+ tokens longer than"):
            runtime.predict([asked], "answers", too_long="refuse")
        for name, (one, said) in WRONG.items():
            with pytest.raises(OptionError, match=said):
                runtime.predict(["leo", one], [None, name])
    with pytest.raises(OptionError, match="serve it from a bundle"):
        ax.export_merged(encoder, adapters["summary"], tmp_path / "merged")


def test_int8_bundles_hold_all_of_them_too(adapters, encoder, tmp_path):
    """Two, since all adapters of a bundle share its ranges, and a random encoder's are wide."""
    answers = {}
    for names in ([name for name in TASKS if name != "summary"], ["summary", "names"]):
        folder = tmp_path / names[0]
        ax.export(encoder, [adapters[name] for name in names], folder)
        with Runtime.open(folder) as runtime:
            found = runtime.predict([INPUTS[name] for name in names], names)
        answers |= dict(zip(names, found, strict=True))
    assert answers.keys() == TASKS.keys()
    assert answers["names"].prediction.entities[0].text == "Nairobi"
    assert answers["answers"].prediction.text == "Dodoma"
    assert answers["summary"].prediction.text == SENTENCES[1]


def test_several_tasks_train_in_one_job(encoder, adapters):
    from adaptx.training.many import Member, train_many

    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    settings = {"epochs": 3, "lr": 1e-2, "batch_size": 4}
    members = [
        Member(name, config, train=records, dev=records, task=task, settings=settings)
        for name, (task, records) in TASKS.items()
    ]
    found = train_many(encoder, members, precision="no")
    assert list(found.adapters) == list(TASKS)
    for name, (task, records) in TASKS.items():
        alone = ax.train(
            encoder, task, config, name=name, train=records, dev=records, precision="no",
            **settings,
        )  # fmt: skip
        history = found.adapters[name].facts.training["history"]
        for one, two in zip(history, alone.facts.training["history"], strict=True):
            assert one["loss"] == pytest.approx(two["loss"], rel=1e-3), name


def same(one, two):
    """Whether two answers are, but for rounding."""
    if isinstance(one, np.ndarray):
        return np.allclose(one, two, atol=1e-4)
    return _close(one.to_json(), two.to_json())


def _close(one, two):
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(_close(one[k], two[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(_close, one, two))
    return one == pytest.approx(two, abs=1e-3) if isinstance(one, float) else one == two
