import json

import numpy as np
import pytest
from sklearn.metrics import classification_report

import adaptx as ax
from adaptx.data.read import Example, read_examples
from adaptx.errors import DataError, LabelSetsDiffer, OptionError
from adaptx.evaluation.side_by_side import SideBySide
from tests.conftest import ROOT, SAMPLE

TEST = {
    name: read_examples(ROOT / "recipes" / "data" / name / "test.jsonl") for name in ("swh", "eng")
}


@pytest.fixture(scope="module")
def probe(small):
    return ax.train(
        small, ax.tasks.Classification(), None, name="p", train=SAMPLE / "train.jsonl", seed=1
    )


def turned_round(small, adapter):
    """The same probe, with its labels in the opposite order."""
    task = ax.tasks.Classification(adapter.task.labels[::-1])
    other = ax.Adapter.new(small, task, None, name="turned-round")
    other.head.weight.data = adapter.head.weight.data.flip(0)
    other.head.bias.data = adapter.head.bias.data.flip(0)
    return other


def test_a_report_is_what_predict_answers_counted_by_scikit_learn(small, probe):
    rows = TEST["swh"]
    report = ax.evaluate(small, probe, rows, batch_size=7)
    said = [answer.label for answer in small.predict([row.text for row in rows], probe)]
    wanted = classification_report(
        [row.label for row in rows], said, output_dict=True, zero_division=0
    )
    assert [report.labels[i] for i in report.predicted] == said
    assert report.scores["accuracy"] == wanted["accuracy"]
    assert report.scores["macro_f1"] == pytest.approx(wanted["macro avg"]["f1-score"])
    for label, scores in report.by_label.items():
        assert scores["precision"] == pytest.approx(wanted[label]["precision"])
        assert scores["recall"] == pytest.approx(wanted[label]["recall"])
        assert scores["rows"] == wanted[label]["support"]


def test_an_order_of_labels_makes_no_difference(small, probe):
    other = turned_round(small, probe)
    one = ax.evaluate(small, probe, TEST["swh"])
    two = ax.evaluate(small, other, TEST["swh"], labels=probe.task.labels)
    assert np.array_equal(one.predicted, two.predicted)
    assert np.array_equal(one.targets, two.targets)
    assert not np.array_equal(one.targets, ax.evaluate(small, other, TEST["swh"]).targets)


def test_what_cant_be_evaluated_is_refused(small, probe):
    with pytest.raises(OptionError, match="has no head"):
        ax.evaluate(small, ax.Adapter.new(small, None, None, name="bare"), TEST["swh"])
    language = ax.Adapter.new(small, ax.tasks.MaskedLanguage(), None, name="language")
    with pytest.raises(OptionError, match="its perplexity is measured in training, on --dev"):
        ax.evaluate(small, language, TEST["swh"])
    with pytest.raises(DataError, match=r"x\.tsv, line 3: unknown label 'hali ya hewa'"):
        ax.evaluate(small, probe, [Example("Mvua", "hali ya hewa", "x.tsv", 3)])
    with pytest.raises(LabelSetsDiffer, match="only 'p' has entertainment"):
        ax.evaluate(small, probe, TEST["swh"], labels=["michezo"])


def test_side_by_side_pools_languages_and_compares_with_the_first(small, probe):
    task = ax.tasks.Classification(pooling="cls")
    cls = ax.train(small, task, None, name="cls", train=SAMPLE / "train.jsonl")
    compared = SideBySide(
        {
            adapter.name: {name: ax.evaluate(small, adapter, rows) for name, rows in TEST.items()}
            for adapter in (probe, cls)
        }
    )
    assert compared.languages == ["swh", "eng", "all"]
    found = compared.to_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    everything = found["p"]["languages"]["all"]
    assert everything["rows"] == 56 + 70
    assert found["p"]["differences_to_first"] == {}
    for language, less in found["cls"]["differences_to_first"].items():
        for metric, difference in less.items():
            scores = [found[name]["languages"][language][metric] for name in ("cls", "p")]
            assert difference["difference"] == pytest.approx(scores[0] - scores[1])
            assert difference["low"] <= difference["high"]


def test_one_data_set_isnt_pooled(small, probe):
    compared = SideBySide({"p": {"swh": ax.evaluate(small, probe, TEST["swh"])}})
    assert compared.languages == ["swh"]
