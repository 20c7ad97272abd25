"""`adaptx explain` and `adaptx audit` as users run them, and docs/explain.md."""

import json
import re
import shlex
import shutil

import pytest

import adaptx as ax
from adaptx.cli.main import app
from adaptx.errors import DataError, FolderError, OptionError, OutputExists
from tests.cli.test_cli import refused, run
from tests.cli.test_commands import inside
from tests.conftest import BUNDLED, ROOT
from tests.test_readme import blocks

PAGE = ROOT / "docs" / "explain.md"
PEOPLE = ROOT / "recipes" / "data" / "tasks" / "people.tsv"
NAMES = ROOT / "recipes" / "data" / "tasks" / "names.tsv"


@pytest.fixture(scope="module")
def topics(small, tmp_path_factory):
    """The folder of a LoRA for the labels of PEOPLE."""
    from peft import LoraConfig

    config = LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear")
    task = ax.tasks.Classification(("health", "politics", "sports"))
    adapter = ax.Adapter.new(small, task, config, name="topics")
    return adapter.save(tmp_path_factory.mktemp("explain") / "topics")


def test_the_pages_commands_and_python_run(small_folders, tmp_path, monkeypatch, capsys):
    """From top to bottom, with a small encoder, in this process: loading torch takes longest."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("adaptx ")]
    assert [shlex.split(line)[:2] for line in lines] == [
        ["adaptx", name] for name in ("train", "explain", "audit")
    ]
    said = []
    for line in lines:
        arguments = shlex.split(line)[1:]
        if arguments[0] == "train":
            arguments += ["--encoder", str(small_folders["bert"]), "--epochs", "1"]
        app(arguments, standalone_mode=False)
        said.append(capsys.readouterr().out)
    shown = "\n".join(blocks(PAGE, "text"))
    for heads in (r"^word .*$", r"^site .*$", r"^group .*$", r"^terms .*$"):
        (wanted,) = re.findall(heads, shown, re.M)
        assert any(wanted.split() == line.split() for out in said for line in out.splitlines())
    assert "<!DOCTYPE html>" in (tmp_path / "why.html").read_text()
    assert "Zawadi ↔ Salim" in (tmp_path / "audit.html").read_text()

    (code,) = blocks(PAGE, "python")
    exec(code.replace(BUNDLED, str(small_folders["bert"])), {})
    assert "Difference(metric='accuracy'" in capsys.readouterr().out


def test_explain_in_a_process_of_its_own_prints_json_and_keeps_a_page(small, topics, tmp_path):
    text = "Timu \x1b[31mimeshinda"
    done = run("explain", topics, text, "--json", "--steps", 9, "--html", tmp_path / "why.html")
    found = json.loads(done.stdout)
    wanted = ax.explain(small, ax.Adapter.load(topics, small), text, steps=9)
    assert found["score"] == pytest.approx(wanted.score, abs=1e-5)
    assert [word["text"] for word in found["words"]] == [word.text for word in wanted.words]
    assert "Wrote" in done.stderr and (tmp_path / "why.html").stat().st_size > 1000
    said = refused("explain", topics, text, "--html", tmp_path / "why.html")
    assert "--overwrite" in said


def test_control_characters_of_a_text_dont_reach_the_terminal(topics, capsys):
    inside("explain", topics, "Timu \x1b[31mimeshinda", "--steps", 2, "--label", "health")
    said = capsys.readouterr().out
    assert "\x1b[31m" not in said
    assert "log-odds of health" in said
    assert re.search(r"layer 2 .*\d", said) and "of 12" in said


def test_audit_prints_what_the_library_found(small, topics, capsys):
    from adaptx.data.read import read_column, read_examples
    from adaptx.data.swaps import read_swaps

    inside("audit", topics, "-d", PEOPLE, "--swaps", NAMES, "--group-column", "gender", "--json")
    found = json.loads(capsys.readouterr().out)
    wanted = ax.audit(
        small,
        ax.Adapter.load(topics, small),
        read_examples(PEOPLE),
        groups=read_column(PEOPLE, "gender"),
        swaps=read_swaps(NAMES),
    )
    assert found["groups"] == json.loads(json.dumps(wanted.groups.to_json()))
    for one in (found["swaps"]["total"], *found["swaps"]["pairs"]):
        terms = tuple(one.get("terms", ()))
        same = wanted.swaps.pairs[terms] if terms else wanted.swaps.total
        assert (one["rows"], one["swaps"], one["changed"]) == (same.rows, same.swaps, same.changed)
        assert one["mean_change"] == pytest.approx(same.mean_change, abs=1e-6)
    assert found["groups"]["groups"]["f"]["rows"] == 9
    inside("audit", topics, "-d", PEOPLE, "--swaps", NAMES)
    assert "18 of 18 rows hold a term; 0 hold none." in capsys.readouterr().out


def test_what_cant_be_audited_or_explained_is_refused(small, topics, tmp_path):
    bare = ax.Adapter.new(small, None, None, name="bare").save(tmp_path / "bare")
    mlm = ax.Adapter.new(small, ax.tasks.MaskedLanguage(), None, name="mlm").save(tmp_path / "mlm")
    one, none = tmp_path / "one.tsv", tmp_path / "none.tsv"
    one.write_text("Asha\tJuma\nNeema\n")
    none.write_text("Rehema\tOmari\n")
    (tmp_path / "empty.tsv").write_text("\n")
    of_peft = tmp_path / "peft"
    shutil.copytree(topics, of_peft)
    (of_peft / "adaptx.json").unlink()
    data = ["audit", topics, "-d", PEOPLE]
    for words, error, said in (
        ([*data], OptionError, "--group-column, --swaps, or both"),
        ([*data, "--swaps", one], DataError, "one.tsv, line 2: there is one term, 'Neema'"),
        ([*data, "--swaps", tmp_path / "empty.tsv"], DataError, "empty.tsv: the file has no terms"),
        ([*data, "--swaps", none], OptionError, "None of the 18 rows holds one of the terms"),
        (
            [*data, "--group-column", "sex"],
            DataError,
            "no column 'sex' for the group; there is: text, label, gender",
        ),
        (["audit", bare, "-d", PEOPLE, "--swaps", NAMES], OptionError, "has no head"),
        (["audit", mlm, "-d", PEOPLE, "--swaps", NAMES, "-e", one], OptionError, "answers nothing"),
        (["audit", of_peft, "-d", PEOPLE, "--swaps", NAMES], FolderError, "adapters import"),
        (["audit", tmp_path / "x", "-d", PEOPLE, "--swaps", NAMES], FolderError, "no adapter"),
        ([*data, "--swaps", NAMES, "--html", tmp_path], OptionError, "can't be written"),
        (["explain", bare, "Habari"], OptionError, "a vector, which has no score"),
        (["explain", topics, "Habari", "--label", "x"], OptionError, "health, politics, sports"),
        (["explain", topics, "Habari", "--html", one], OutputExists, "--overwrite"),
        (["explain", topics, "Habari", "--html", tmp_path / "a" / "b"], OptionError, "no folder"),
    ):
        with pytest.raises(error, match=re.escape(said)):
            inside(*words)
