"""`adaptx adapters`, and the pages that show it, with the commands as they stand there."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from adaptx import Adapter, tasks
from adaptx.adapters.folder import read_facts
from adaptx.cli.main import app
from adaptx.data.read import read_examples
from adaptx.errors import FolderError, OptionError, OutputExists
from tests.cli.test_cli import refused, run
from tests.conftest import ROOT, SAMPLE
from tests.hub_server import running_hub
from tests.test_layout import HEAVY
from tests.test_readme import blocks

TASK = tasks.Classification(("michezo", "siasa", "afya"))


def adaptx(*arguments):
    """Run a command in this process; its exit code."""
    return app([str(argument) for argument in arguments], standalone_mode=False) or 0


def save(encoder, folder, **training):
    lora = Adapter.new(encoder, TASK, LoraConfig(r=4), name=folder.name, language="sw")
    return lora.with_training(training).save(folder)


@pytest.fixture
def adapters(small, tmp_path, monkeypatch):
    """The folder `adapters`, with two that are whole and one that is not, where we stand."""
    scores = {"macro_f1": 0.6, "weighted_f1": 0.6}
    history = [{"epoch": i, "accuracy": value, **scores} for i, value in ((1, 0.5), (2, 0.625))]
    training = {"settings": {"metric": "accuracy"}, "best": history[1], "history": history}
    save(small, tmp_path / "adapters" / "sw-topics", **training)
    Adapter.new(small, TASK, None, name="probe").save(tmp_path / "adapters" / "probe")
    damaged = save(small, tmp_path / "adapters" / "damaged")
    (damaged / "adaptx.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "adapters"


def test_list_has_a_row_for_each_and_names_the_damage(adapters, capsys):
    assert adaptx("adapters", "list") == 0
    said = capsys.readouterr().out
    for words in (["sw-topics", "lora", "bank", "sw", "3 labels", "0.625"], ["probe", "head"]):
        (line,) = [line for line in said.splitlines() if line.strip().startswith(words[0])]
        assert all(word in line for word in words)
    assert "3 adapters, 1 of them damaged." in said
    assert re.search(r"adapters/damaged/adaptx\.json can't be read as JSON", said)
    assert adaptx("adapters", "list", adapters, adapters / "probe", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["damaged", "probe", "sw-topics"]
    assert [bool(row["damage"]) for row in rows] == [True, False, False]
    assert rows[2]["score"] == 0.625


def test_show_says_all_there_is(adapters, capsys):
    assert adaptx("adapters", "show", adapters / "sw-topics") == 0
    said = capsys.readouterr().out
    for words in ("sw-topics", "bank", "sha256:", "michezo, siasa, afya", "attention.self.query"):
        assert words in said
    assert re.search(r"attention\.self\.value +2 +4 +2 ", said)
    assert re.search(r"2 +0\.625", said)
    assert re.search(r"head\.safetensors +564 +whole", said)
    assert adaptx("adapters", "show", adapters / "sw-topics", "--json") == 0
    assert json.loads(capsys.readouterr().out)["language"] == "sw"


def test_control_characters_of_a_folder_dont_reach_the_terminal(adapters, capsys):
    path = adapters / "sw-topics" / "adaptx.json"
    facts = json.loads(path.read_text())
    evil = "\x07\x9b[red]"
    facts |= {"language": evil, "encoder": evil, "training": {"best": evil, evil: [evil]}}
    path.write_text(json.dumps(facts))
    assert adaptx("adapters", "list") == 0
    assert adaptx("adapters", "show", adapters / "sw-topics") == 0
    said = capsys.readouterr().out
    assert not [c for c in said if not c.isprintable() and c != "\n"]
    assert said.count("[red]") == 7


def test_verify_exits_1_and_says_which_is_damaged_and_why(adapters, capsys):
    whole, damaged = adapters / "sw-topics", adapters / "probe"
    assert adaptx("adapters", "verify", whole) == 0
    assert capsys.readouterr().out == f"{whole}: whole.\n"
    with (damaged / "head.safetensors").open("ab") as file:
        file.write(b"more")
    assert adaptx("adapters", "verify", whole, damaged) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{whole}: whole."
    assert second.startswith(f"{damaged}: ")
    assert "head.safetensors was changed or damaged" in second
    assert adaptx("adapters", "verify", whole, damaged, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert [len(one["damage"]) for one in found] == [0, 1]


def test_verify_with_an_encoder_finds_that_it_is_another(adapters, small, small_folders, capsys):
    assert adaptx("adapters", "verify", adapters / "probe", "-e", small.name) == 0
    assert adaptx("adapters", "verify", adapters / "probe", "-e", small_folders["roberta"]) == 1
    assert "was trained on encoder" in capsys.readouterr().out


def test_what_is_no_adapters_folder_is_bad_input(adapters, tmp_path):
    with pytest.raises(FolderError, match="no adapter's folder"):
        adaptx("adapters", "verify", tmp_path)
    for command in ("show", "verify", "rename"):
        more = ["new"] if command == "rename" else []
        with pytest.raises(FolderError, match="no adapter folder"):
            adaptx("adapters", command, "./nowhere", *more)
    assert "no folder" in refused("adapters", "list", tmp_path / "nowhere")


def test_the_commands_load_no_torch(adapters):
    code = f"""
import sys
from adaptx.cli.main import app
for command in (["list"], ["show", "adapters/probe"], ["verify", "adapters/probe"],
                ["rename", "adapters/probe", "renamed"]):
    assert not app(["adapters", *command], standalone_mode=False), command
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert (adapters / "renamed").is_dir()


def commands(page):
    lines = "\n".join(blocks(ROOT / "docs" / page, "[a-z]*")).splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("adaptx ")]


def test_the_page_of_adapters_runs(encoder, small_folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    from_peft(small_folders["roberta"], tmp_path / "from-peft")
    (config,) = blocks(ROOT / "docs" / "adapters.md", "json")
    (tmp_path / "ia3.json").write_text(config)
    (tmp_path / "data").mkdir()
    for split in ("train", "dev"):
        rows = read_examples(SAMPLE / f"{split}.jsonl")
        lines = ["text\tlabel", *(f"{row.text}\t{row.label}" for row in rows)]
        (tmp_path / "data" / f"{split}.tsv").write_text("\n".join(lines), encoding="utf-8")
    save(encoder, tmp_path / "adapters" / "sw-topics")
    Adapter.new(encoder, TASK, None, name="sw-probe").save("adapters/sw-probe")
    shutil.copytree("adapters", "more-adapters")
    for arguments in commands("adapters.md"):
        quick = ["-e", small_folders["bert"], "--epochs", "1"] if arguments[0] == "train" else []
        assert adaptx(*arguments, *quick) == 0, arguments
    assert read_facts(tmp_path / "adapters" / "sw-ia3")[0].way == "own pass"
    assert (tmp_path / "adapters" / "sw-news").is_dir()
    assert "0 of them damaged" in capsys.readouterr().out


@pytest.mark.slow
def test_the_page_of_the_hub_runs(small, tmp_path, monkeypatch):
    save(small, tmp_path / "adapters" / "sw-topics")
    monkeypatch.chdir(tmp_path)
    with running_hub() as hub:
        environment = hub.environment(tmp_path / "cache")
        for arguments in commands("hub.md"):
            done = run(*arguments, **environment)
            if arguments[0] == "predict":
                assert done.stdout.split("\t")[0] in TASK.labels
        assert hub.repositories["somebody/sw-topics"].refs.keys() == {"main", "v2"}
        shutil.rmtree("adapters")
        offline = environment | {"HF_HUB_OFFLINE": "1"}
        again = run("adapters", "verify", "somebody/sw-topics", **offline)
        assert again.stdout == "somebody/sw-topics: whole.\n"


def from_peft(encoder_folder, folder):
    """A classifier's LoRA, as PEFT writes it."""
    torch.manual_seed(0)
    kind = AutoModelForSequenceClassification
    model = kind.from_pretrained(encoder_folder, num_labels=2)
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder)


def test_pefts_folder_is_imported_by_one_command(small_folders, tmp_path, capsys):
    from_peft(small_folders["roberta"], tmp_path / "theirs")
    asked = ["adapters", "import", tmp_path / "theirs", "-o", tmp_path / "ours"]
    assert adaptx(*asked, "--labels", "a,b", "--language", "sw") == 0
    assert "goes by bank), answers a, b" in capsys.readouterr().out
    facts, _ = read_facts(tmp_path / "ours")
    assert (facts.name, facts.method, facts.prefix, facts.language) == ("ours", "lora", "", "sw")
    with pytest.raises(OptionError, match="own adapter already"):
        adaptx("adapters", "import", tmp_path / "ours", "-o", tmp_path / "x")
    with pytest.raises(OutputExists):
        adaptx(*asked)


def test_an_import_that_cant_be_says_what_mends_it(small_folders, tmp_path):
    theirs = tmp_path / "theirs"
    from_peft(small_folders["roberta"], theirs)
    config = json.loads((theirs / "adapter_config.json").read_text())
    gone = config | {"base_model_name_or_path": str(tmp_path / "gone")}
    (theirs / "adapter_config.json").write_text(json.dumps(gone))
    asked = ["adapters", "import", theirs, "-o", tmp_path / "ours"]
    assert "no encoder folder" in (said := refused(*asked))
    assert "The adapter's folder names it: --encoder names another." in said
    assert "names it" not in refused(*asked, "--encoder", tmp_path / "nowhere")
    (theirs / "adapter_config.json").unlink()
    assert "neither adaptx.json" in (said := refused(*asked))
    assert "adapter_config.json" in said
