"""`adaptx predict --bundle`: the same answers as in torch, by name, language and column."""

import json

import numpy as np
import pytest

import adaptx as ax
from adaptx.errors import OptionError
from tests.cli.test_adapters import adaptx

TEXTS = ["Timu imeshinda", "Mgonjwa alipewa dawa"]


def lines(capsys, *arguments):
    assert adaptx("predict", *arguments, "--json") == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_bundle_answers_like_torch(bundle, three, small, capsys):
    found = lines(capsys, *TEXTS, "--bundle", bundle, "-a", "sw", "-a", "none")
    wanted = lines(capsys, *TEXTS, "-a", three["sw"], "-a", "none")
    assert [one.pop("truncated") for one in found] == [0, 0]
    assert [one.keys() for one in found] == [one.keys() for one in wanted]
    assert [one["adapter"] for one in found] == ["sw", None]
    assert found[0]["score"] == pytest.approx(wanted[0]["score"], abs=0.1)
    assert found[1]["vector"] == pytest.approx(wanted[1]["vector"], abs=0.5)
    assert adaptx("predict", *TEXTS, "--bundle", bundle, "-a", "sw") == 0
    assert capsys.readouterr().out.splitlines()[0].split("\t")[0] == found[0]["label"]


def test_a_language_or_a_column_chooses_the_adapter(bundle, tmp_path, capsys):
    (answer,) = lines(capsys, "Habari " * 100, "--bundle", bundle, "--language", "yo")
    assert answer["adapter"] == "yo"
    assert answer["truncated"] > 30
    path = tmp_path / "texts.tsv"
    path.write_text("text\tuse\nTimu\tsw\nRais\t\nHabari\tprobe\n")
    found = lines(capsys, "-i", path, "--adapter-column", "use", "--bundle", bundle)
    assert [one["adapter"] for one in found] == ["sw", None, "probe"]


def test_two_texts_of_retrieval_are_two_vectors_and_their_cosine(search, small, capsys):
    folder, bundle = search
    adapter = ax.Adapter.load(folder, small)
    for where in (["-a", folder], ["-a", "search", "--bundle", bundle]):
        (found,) = lines(capsys, "Timu", "--passage", "Rais", *where)
        for name, text in (("vector", "Timu"), ("other_vector", "Rais")):
            assert found[name] == pytest.approx(small.predict([text], adapter)[0], abs=1e-4)
        cosine = np.dot(found["vector"], found["other_vector"])
        assert found["cosine"] == pytest.approx(cosine, abs=1e-4)
        assert adaptx("predict", "Timu", "--passage", "Rais", *where) == 0
        said = capsys.readouterr().out.split("\t")
        assert said[0] == f"cosine {found['cosine']:.3f}" and said[3] == "Timu\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--language", "fr"], "no adapter for the language 'fr'; there is sw, yo"),
        (["-a", "ha"], "no adapter 'ha'; there is sw, yo, probe"),
        (["-a", "sw", "--language", "sw"], "not both"),
        (["-a", "sw", "--encoder", "x"], "for torch"),
        (["-a", "sw", "-a", "yo"], "2 adapters for 1 texts"),
    ],
)
def test_a_bad_option_is_refused(bundle, options, said):
    with pytest.raises(OptionError, match=said):
        adaptx("predict", "Habari", "--bundle", bundle, *options)


def test_a_language_needs_a_bundle(three):
    with pytest.raises(OptionError, match="for --bundle"):
        adaptx("predict", "Habari", "-a", three["sw"], "--language", "sw")
