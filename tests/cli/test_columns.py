"""Pairs whose columns have names of their own, wherever labelled data is read."""

import json

import pytest
from peft import LoraConfig

import adaptx as ax
from tests.cli.test_cli import refused, run

NAMED = {"text_column": "claim", "other_column": "evidence", "label_column": "verdict"}
OPTIONS = [word for key, name in NAMED.items() for word in (f"--{key.replace('_', '-')}", name)]
ROWS = [("Mvua imenyesha", "Barabara ni kavu", "no"), ("Amelala", "Hayuko macho", "yes")] * 2


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    path.write_text("\n".join(map("\t".join, (("claim", "evidence", "verdict"), *ROWS))))
    return path


@pytest.fixture(scope="module")
def adapter(small_folders, pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "nli"
    run(
        "train", "--task", "pairs", "--train", pairs, "--dev", pairs, "-o", folder,
        "-e", small_folders["bert"], "--method", "probe", *OPTIONS,
    )  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("data check {pairs} --task pairs -e none", "4 rows, none of them bad"),
        ("eval {adapter} --data sw={pairs}", "accuracy"),
        ("audit {adapter} --data {pairs} --group-column claim", "Amelala"),
        ("export {adapter} -o {new} --dev {pairs} --dry-run", "4 dev rows"),
        ("export {adapter} -o {new} --dev {pairs} --merged --dry-run", "4 dev rows"),
        ("tune --task pairs --train {pairs} --dev {pairs} -o {new} -e {encoder} --r 2 --epochs 1"
         " --lr 1e-3", "Wrote"),
    ],
)  # fmt: skip
def test_commands_read_them(adapter, pairs, small_folders, tmp_path, command, said):
    places = {"adapter": adapter, "pairs": pairs, "new": tmp_path / "new"}
    words = [word.format(**places, encoder=small_folders["bert"]) for word in command.split()]
    assert said in run(*words, *OPTIONS).stdout


@pytest.mark.parametrize(
    "config",
    [
        {"adapters": [{"name": "a", "task": "pairs"}]},
        {"tasks": {"a": {"task": "pairs"}, "b": {"task": "similarity", "label_column": "score"}}},
    ],
)
def test_a_file_of_many_adapters_or_tasks_names_them(
    pairs, small_folders, tmp_path, config, capsys
):
    rows = [line.split("\t") for line in pairs.read_text().splitlines()[1:]]
    lines = [{"claim": a, "evidence": b, "verdict": c, "score": len(a)} for a, b, c in rows]
    data, made = tmp_path / "pairs.jsonl", []
    data.write_text("\n".join(map(json.dumps, lines)))
    for one in (*config.get("adapters", ()), *config.get("tasks", {}).values()):
        one.update({**NAMED, **one, "train": str(data)})
        made.append(one)
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config))
    command = ["train", "--config", path, "-o", tmp_path / "out", "-e", small_folders["bert"]]
    assert f"Would train {len(made)}" in run(*command, "--dry-run").stdout


def test_python_takes_them(small, pairs):
    task, config = ax.tasks.PairClassification(), LoraConfig(r=2, target_modules="all-linear")
    assert ax.train(small, task, None, name="a", train=pairs, **NAMED).task.labels == ("no", "yes")
    member = ax.Member("a", config, pairs, task=task, settings={"epochs": 1}, **NAMED)
    assert ax.train_many(small, [member]).adapters
    assert len(ax.Source(pairs, **NAMED).rows(task)[0]) == len(ROWS)
    found = ax.tune(
        small, task, config, name="a", train=pairs, dev=pairs, lrs=[1e-3], settings={"epochs": 1},
        **NAMED,
    )  # fmt: skip
    assert found.adapter.task.labels == ("no", "yes")


def test_a_second_text_that_no_row_has_is_refused(pairs, tmp_path):
    said = refused("train", "--train", pairs, "-o", tmp_path / "new", *OPTIONS)
    assert "A row of classification has one text: leave --other-column" in said
    one = ("--task", "similarity", "--text-column", "claim", "-e", "none")
    assert "Name both columns" in refused("data", "check", pairs, *one)


def test_tags_that_training_reads_by_an_option_are_tuned_by_it(small_folders, tmp_path):
    data = tmp_path / "names.conll"
    data.write_text("Samia I-PER\nyuko O\n\nDodoma B-LOC\n")
    command = [
        "tune", "--task", "token-classification", "--train", data, "--dev", data,
        "-o", tmp_path / "new", "-e", small_folders["bert"], "--dry-run",
    ]  # fmt: skip
    assert "--repair" in refused(*command)
    for option in (["--repair"], ["--scheme", "plain"]):
        assert "Would train" in run(*command, *option).stdout
