"""`adaptx predict --bundle`: the same answers as in torch, by name, language and column."""

import json

import numpy as np
import pytest

import adaptx as ax
from adaptx.data.read import read_texts
from adaptx.errors import OptionError
from adaptx.runtime import Runtime
from tests.cli.test_adapters import adaptx
from tests.conftest import ROOT
from tests.test_readme import blocks

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
    for where in (["-a", folder], ["-a", "sw-search", "--bundle", bundle]):
        (found,) = lines(capsys, "Timu", "--passage", "Rais", *where)
        for name, text in (("vector", "Timu"), ("other_vector", "Rais")):
            assert found[name] == pytest.approx(small.predict([text], adapter)[0], abs=1e-4)
        cosine = np.dot(found["vector"], found["other_vector"])
        assert found["cosine"] == pytest.approx(cosine, abs=1e-4)
        assert adaptx("predict", "Timu", "--passage", "Rais", *where) == 0
        said = capsys.readouterr().out.split("\t")
        assert said[0] == f"cosine {found['cosine']:.3f}" and said[3] == "Timu\n"


def test_documents_of_a_file_are_ranked_in_torch_and_in_a_bundle(search, small, tmp_path, capsys):
    folder, bundle = search
    documents = [*TEXTS, "Rais", TEXTS[0], "Habari za leo"]
    path = tmp_path / "documents.txt"
    path.write_text("\n".join(documents), encoding="utf-8")
    wanted = small.rank("Rais", documents, ax.Adapter.load(folder, small))
    assert wanted[0].place == 2 and wanted[0].score == pytest.approx(1, abs=1e-5)
    for where in (["-a", folder], ["-a", "sw-search", "--bundle", bundle]):
        found = lines(capsys, "Rais", "--rank", path, *where)
        assert [one["place"] for one in found] == [one.place for one in wanted]
        for one, its in zip(found, wanted, strict=True):
            assert one["text"] == its.text and one["score"] == pytest.approx(its.score, abs=1e-4)
        assert adaptx("predict", "Rais", "--rank", path, "--top", "2", *where) == 0
        assert capsys.readouterr().out == "".join(f"{one}\n" for one in wanted[:2])
    first, *_ = lines(capsys, "Rais", "--rank", path, "-e", small.folder)
    assert first["text"] == "Rais"


def test_the_pages_ranking_runs(search, small):
    (code,) = [b for b in blocks(ROOT / "docs" / "tasks.md", "python") if ".rank(" in b]
    folder, bundle = search
    passages = [text.text for text in read_texts(ROOT / "recipes/data/tasks/passages.txt")]
    with Runtime.open(bundle) as rt:
        names = {"encoder": small, "rt": rt, "passages": passages}
        names["search"] = ax.Adapter.load(folder, small)
        exec(code, names)
        in_torch = small.rank("Basi hupita lini?", passages, names["search"], top=3)
    assert [one.place for one in names["found"]] == [one.place for one in in_torch]
    assert all(passages[one.place] == one.text for one in in_torch) and len(in_torch) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["Rais", "Habari", "-a", "sw"], "one text, the query"),
        (["Rais", "-a", "sw", "-a", "yo"], "at most one adapter"),
        (["Rais", "-a", "sw", "--passage", "x", "--language", "sw"], "--passage, --language"),
        (
            ["Rais", "-a", "sw"],
            "'sw' is of the task 'classification', whose answers",
        ),
    ],
)
def test_what_cant_rank_is_refused(bundle, options, said):
    passages = ROOT / "recipes" / "data" / "tasks" / "passages.txt"
    with pytest.raises(OptionError, match=said):
        adaptx("predict", *options, "--bundle", bundle, "--rank", passages)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--top", "2"], "give --rank too"),
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
