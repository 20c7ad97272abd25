"""docs/tasks.md: its commands, in their order, with a small encoder and one epoch."""

import json
import shlex

import pytest

from tests.cli.test_cli import run
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "tasks.md").read_text()
METRICS = ("F1", "F1", "micro F1", "accuracy", "Spearman", "MRR", "MRR", "ROUGE-1", "perplexity")
COMMANDS = [line for line in PAGE.splitlines() if line.startswith("adaptx ")]


@pytest.fixture(scope="module")
def sections(tmp_path_factory, small_folders):
    """By adapter, what its commands printed; they run in a folder of their own."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in COMMANDS:
            words = shlex.split(line)[1:]
            if words[0] == "train":
                words += ["-e", small_folders["xlm-roberta"], "--epochs", "2"]
            if words[0] == "predict":
                words += ["--json"]
            found.setdefault(words[0], []).append(run(*words).stdout)
    return found


def test_every_task_that_has_a_section_trains(sections):
    assert len(sections["train"]) == len(METRICS)
    for said, metric in zip(sections["train"], METRICS, strict=True):
        assert f"dev {metric} " in said


def test_answers_have_the_shape_that_the_page_says(sections):
    found = [[json.loads(line) for line in said.splitlines()] for said in sections["predict"]]
    (names,), (answers,), (reviews,), (pairs,), (nearness,), (vector,), ranked, (summary,) = found
    assert isinstance(names["entities"], list)
    text = "Soko jipya la Mbeya lilifunguliwa mwezi Machi."
    assert answers["other"] == text and text[answers["start"] : answers["end"]] == answers["text"]
    assert set(reviews["scores"]) == {"bei", "chakula", "huduma"}
    assert pairs["label"] in ("yes", "no")
    assert isinstance(nearness["score"], float)
    assert sum(v * v for v in vector["vector"]) == pytest.approx(1, abs=1e-3)
    passages = (ROOT / "recipes" / "data" / "tasks" / "passages.txt").read_text().splitlines()
    assert [passages[one["place"]] for one in ranked] == [one["text"] for one in ranked]
    scores = [one["score"] for one in ranked]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    starts = [part["start"] for part in summary["summary"]]
    assert len(starts) == 3 and set(starts) <= {0, 22, 51, 66} and starts == sorted(starts)
    assert "F1" in sections["eval"][0] and "LOC" in sections["eval"][0]
