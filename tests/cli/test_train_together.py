"""`adaptx train --config together.yaml`, as users run it, with the file of docs/together.md."""

import ast
import re
import textwrap

import pytest
import yaml

import adaptx as ax
from adaptx.errors import OptionError
from adaptx.training import together, together_file
from adaptx.training.runs import read_log, read_run
from adaptx.training.together_file import together_of
from tests.cli.test_cli import refused, run
from tests.conftest import ROOT, SAMPLE

PAGE = (ROOT / "docs" / "together.md").read_text()
NAMES = ROOT / "recipes" / "data" / "tasks" / "names.conll"


def test_the_pages_file_trains_what_it_says(small_folders, tmp_path, monkeypatch):
    """With small data where the page says, and a small encoder."""
    monkeypatch.chdir(tmp_path)
    said = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.S)[1])
    topics = said["tasks"]["topics"]
    for one in (topics, *said["tasks"]["names"]["sources"]):
        for split in ("train", "dev"):
            path = tmp_path / one[split]
            path.parent.mkdir(parents=True, exist_ok=True)
            source = SAMPLE / f"{split}.jsonl" if one is topics else NAMES
            path.write_bytes(source.read_bytes())
    said |= {"epochs": 2}
    (tmp_path / "together.yaml").write_text(yaml.safe_dump(said, sort_keys=False))
    command = ["train", "--config", "together.yaml", "-o", "adapters", "-e", small_folders["bert"]]
    dry = run(*command, "--dry-run").stdout
    assert "names in yo: 12 rows, 12 dev rows" in dry
    assert "2 tasks on one adapter of 12 sites" in dry and not (tmp_path / "adapters").exists()
    done = run(*command, "--run", "runs/sw")
    assert re.search(r"names\.yo  .*F1", done.stderr) and "mean" in done.stderr
    encoder = ax.Encoder.from_pretrained(small_folders["bert"])
    for task in ("topics", "names"):
        adapter = ax.Adapter.load(tmp_path / "adapters" / f"sw-{task}", encoder)
        assert adapter.facts.training["settings"]["temperature"] == 2
        assert adapter.facts.training["settings"]["weights"] == [1.0, 4, 4]
    log = read_run(tmp_path / "runs" / "sw")
    assert log.state == "done" and log.settings["metric"] == "mean"
    (first, _) = read_log(log, "epoch")
    assert {"mean", "topics.accuracy", "names.f1", "names.yo.f1", "names.sw.f1"} <= first.keys()
    run("runs", "plot", "runs/sw", "-o", "curve.png")
    assert "already" in refused(*command)
    assert "is done already" in run(*command, "--run", "runs/sw", "--resume").stdout


def test_the_examples_of_both_docstrings_are_what_they_say(tmp_path):
    said = yaml.safe_load(together_file.__doc__.split("\n\n")[1])
    job = together_of(tmp_path / "together.yaml", said)
    assert list(job.tasks) == ["topics", "names"] and job.settings["epochs"] == 10
    assert [source["language"] for source in job.tasks["names"]["sources"]] == ["sw", "yo"]
    code = textwrap.dedent(together.__doc__.split("\n\n")[1])
    call = ast.parse(code).body[0].value
    names = {"ax": ax, **vars(ax.tasks)}
    parts = eval(ast.unparse(call.args[1]), names)
    assert [part.sources[0].train for part in parts.values()] == ["sw/topics.tsv", "sw/ner.conll"]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"tasks": {"a": {"train": "x"}}, "epocs": 3}, "'epocs'; did you mean epochs"),
        ({"tasks": ["a"]}, "tasks must be named"),
        ({"tasks": {"a": 3}}, "task a: this must be named values"),
        ({"tasks": {"a": {"dev": "x"}}}, "task a: train is missing"),
        ({"tasks": {"a": {"sources": 3}}}, "task a: sources must be a list"),
        ({"tasks": {"a": {"sources": [{"dev": "x"}]}}}, "task a, source 1: train is missing"),
        ({"tasks": {"a": {"sources": [], "dev": "x"}}}, "dev stands beside sources"),
        ({"tasks": {"a": {"sources": [{"weight": 1, "train": "x"}]}}}, "no key 'weight'"),
        (yaml.safe_load("tasks: {a: {train: x, language: no}}"), "language .* in quotes"),
    ],
)
def test_a_file_that_says_nonsense_is_refused(tmp_path, config, named):
    with pytest.raises(OptionError, match=named):
        together_of(tmp_path / "together.yaml", config)


def test_options_that_the_file_has_and_samplings_that_there_arent_are_refused(tmp_path):
    path = tmp_path / "together.yaml"
    one = {"task": "token-classification", "train": str(NAMES)}
    path.write_text(yaml.safe_dump({"sampling": "often", "tasks": {"a": one, "b": one}}))
    command = ["train", "--config", path, "-o", tmp_path / "made"]
    assert "--lr would have no effect" in refused(*command, "--lr", "3")
    assert "none of proportional" in refused(*command, "--dry-run")
    assert "--resume needs --run" in refused(*command, "--resume")
    often = ("--checkpoint-every", "-1", "--dry-run")
    assert "checkpoint_every=-1.0 must" in refused(*command, *often)
