import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file

from adaptx import Adapter, storage, tasks
from adaptx.adapters import folder as layout
from adaptx.adapters import inspect
from adaptx.adapters.card import model_card
from adaptx.adapters.lora import unexpressed
from adaptx.adapters.rename import rename_folder
from adaptx.errors import AdaptxError, FolderError, OptionError, OutputExists
from tests.adapters.peft_oracle import peft_model, plain_model

TASK = tasks.Classification(("michezo", "siasa", "afya"))
CONFIG = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", rank_pattern={"query": 2})
HISTORY = [{"epoch": 1, "loss": 1.5, "accuracy": 0.5}, {"epoch": 2, "loss": 1.0, "accuracy": 0.75}]


@pytest.fixture(scope="module")
def made(small, tmp_path_factory):
    """A folder of folders: a LoRA, a probe, and two that PEFT wrote."""
    top = tmp_path_factory.mktemp("made")
    lora = Adapter.new(small, TASK, CONFIG, name="sw-topics", language="sw")
    best = HISTORY[1] | {"macro_f1": 0.7, "weighted_f1": 0.7}
    lora.with_training(
        {"settings": {"metric": "accuracy", "lr": 1e-3}, "best": best, "history": HISTORY}
    ).save(top / "sw-topics")
    Adapter.new(small, TASK, None, name="probe").save(top / "more" / "probe")
    peft_model(small.folder, {"default": CONFIG}).save_pretrained(str(top / "theirs"))
    ia3 = IA3Config(target_modules=["query"], feedforward_modules=[])
    get_peft_model(plain_model(small.folder), ia3).save_pretrained(str(top / "ia3"))
    return top


@pytest.fixture
def saved(made, tmp_path):
    return shutil.copytree(made / "sw-topics", tmp_path / "sw-topics")


def change(folder, **facts):
    path = folder / "adaptx.json"
    storage.write_json(path, json.loads(path.read_text()) | facts)


def reseal(folder, name):
    """Write a file's own sha256 into the manifest: what is wrong with it isn't an accident."""
    files = json.loads((folder / "adaptx.json").read_text())["files"]
    change(folder, files=files | {name: storage.sha256(folder / name)})


def test_adapters_are_found_at_and_up_to_two_levels_below_a_folder(made, tmp_path):
    names = {"ia3", "more/probe", "sw-topics", "theirs"}
    assert {str(path.relative_to(made)) for path in inspect.find(made)} == names
    assert inspect.find(made / "sw-topics") == [made / "sw-topics"]
    deep = tmp_path / "a" / "b" / "c"
    shutil.copytree(made / "sw-topics", deep)
    assert inspect.find(tmp_path) == []
    assert inspect.find(tmp_path / "a") == [deep]
    shutil.copytree(deep, tmp_path / "a" / ".c.new-1")
    assert inspect.find(tmp_path / "a") == [deep]
    with pytest.raises(FolderError, match="no folder"):
        inspect.find(tmp_path / "nowhere")


def test_folders_of_other_kinds_are_no_adapters(tmp_path):
    (tmp_path / "merged").mkdir()
    storage.write_manifest(tmp_path / "merged", "merged", {})
    (tmp_path / "plain").mkdir()
    assert inspect.find(tmp_path) == []


def test_a_row_says_the_facts_in_short(made, small):
    rows = {path.name: inspect.row(path) for path in inspect.find(made)}
    assert [rows[name]["way"] for name in ("sw-topics", "probe", "theirs", "ia3")] == [
        "bank", "head", "bank", "own pass",
    ]  # fmt: skip
    lora, probe, theirs = rows["sw-topics"], rows["probe"], rows["theirs"]
    assert (lora["method"], lora["language"], lora["labels"]) == ("lora", "sw", 3)
    assert (lora["task"], lora["encoder"]) == ("classification", small.name)
    assert (lora["score"], lora["metric"]) == (0.75, "accuracy")
    size = sum(path.stat().st_size for path in (made / "sw-topics").iterdir())
    assert lora["megabytes"] == size / 1e6
    assert probe["score"] is None
    assert (theirs["name"], theirs["task"]) == ("theirs", None)
    assert not any(row["damage"] for row in rows.values())


@pytest.mark.parametrize(
    ("options", "way"),
    [
        ({}, "bank"),
        ({"use_rslora": True, "init_lora_weights": "gaussian"}, "bank"),
        ({"modules_to_save": ["classifier"]}, "bank"),
        ({"modules_to_save": ["embeddings"]}, "own pass"),
        ({"trainable_token_indices": [5, 6]}, "own pass"),
        ({"bias": "all"}, "own pass"),
        ({"lora_bias": True}, "own pass"),
        ({"init_lora_weights": "pissa"}, "own pass"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "own pass"),
        ({"use_dora": True}, "own pass"),
    ],
)
def test_pefts_folders_go_the_way_that_their_options_ask_for(made, tmp_path, options, way):
    folder = shutil.copytree(made / "theirs", tmp_path / "theirs")
    config = LoraConfig(target_modules=["query"], **options)
    config.save_pretrained(folder)
    assert inspect.row(folder)["way"] == way
    assert bool(unexpressed(config)) == (way == "own pass")


@pytest.mark.parametrize("lost", ["adaptx.json", "adapter_config.json", "head.safetensors"])
def test_a_row_of_a_damaged_folder_says_so(saved, lost):
    (saved / lost).unlink()
    if lost == "adaptx.json":  # now it could be PEFT's
        (saved / "adapter_config.json").unlink()
    assert inspect.find(saved.parent) == [saved]
    assert lost in inspect.row(saved)["damage"]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    key=st.sampled_from(["name", "method", "encoder", "language", "task", "scales", "training"]),
    value=JSON | st.fixed_dictionaries({"best": JSON, "settings": JSON, "history": JSON}),
)
def test_whatever_a_manifest_says_it_is_answered_or_refused(made, tmp_path, key, value):
    folder = tmp_path / "any"
    shutil.copytree(made / "sw-topics", folder, dirs_exist_ok=True)
    change(folder, **{key: value})
    row, found = inspect.row(folder), inspect.damage(folder)
    assert json.loads(json.dumps(row)) == row
    try:
        told = inspect.details(folder)
    except FolderError as error:
        assert row["damage"] == str(error)
        assert found == [str(error)]
    else:
        assert json.loads(json.dumps(told)) == told


def test_details_have_sites_head_history_and_files(made):
    found = inspect.details(made / "sw-topics")
    sites = {site["part"]: site for site in found["sites"]}
    query, dense = sites["attention.self.query"], sites["output.dense"]
    assert (query["count"], query["ranks"], query["scales"]) == (2, [2], [6.0])
    assert (dense["count"], dense["ranks"], dense["scales"]) == (2, [4], [3.0])
    assert sum(site["count"] for site in found["sites"]) == 12
    assert found["head"] == {"weight": [3, 32], "bias": [3]}
    assert found["training"]["history"] == HISTORY
    assert {file["state"] for file in found["files"]} == {"whole"}
    weights = load_file(made / "sw-topics" / "adapter_model.safetensors")
    head = load_file(made / "sw-topics" / "head.safetensors")
    assert found["weights"] == sum(a.size for a in [*weights.values(), *head.values()])


def test_details_of_another_method_have_its_tensors(made):
    found = inspect.details(made / "ia3")
    assert (found["method"], found["written_by"]) == ("ia3", "PEFT")
    (part,) = found["sites"]
    assert part["part"] == "attention.self.query.ia3_l"
    assert (part["count"], part["shapes"]) == (2, [[32, 1]])


def test_details_tell_the_state_of_each_file(saved):
    (saved / "README.md").write_text("mine")
    (saved / "notes.txt").write_text("mine")
    (saved / "head.safetensors").unlink()
    states = {file["name"]: file["state"] for file in inspect.details(saved)["files"]}
    assert states == {
        "README.md": "changed",
        "adapter_config.json": "whole",
        "adapter_model.safetensors": "whole",
        "head.safetensors": "missing",
        "notes.txt": "unlisted",
    }


def test_whole_folders_have_no_damage_and_cards_may_be_edited(made, saved):
    assert [inspect.damage(path) for path in inspect.find(made)] == [[]] * 4
    (saved / "README.md").write_text("mine")
    assert inspect.damage(saved) == []
    (saved / "README.md").unlink()
    assert inspect.damage(saved) == []


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def tensors(path, edit):
    found = load_file(path)
    edit(found)
    save_file(found, path)


def rename_key(found):
    found["base_model.model.left.over"] = found.pop(next(iter(found)))


DAMAGE = {
    "flipped": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "absent": lambda path: path.unlink(),
}
SEALED = {
    "NaN": lambda path: tensors(path, lambda found: next(iter(found.values())).fill(np.nan)),
    "key": lambda path: tensors(path, rename_key),
    "lost": lambda path: tensors(path, lambda found: found.pop(next(iter(found)))),
    "shape": lambda path: tensors(
        path, lambda found: found.update({key: found[key][:-1].copy() for key in list(found)[:1]})
    ),
    "pickle": lambda path: path.write_bytes(b"\x80\x04N."),
}


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "head.safetensors"])
@pytest.mark.parametrize("how", [*DAMAGE, *SEALED])
def test_what_cant_be_opened_is_damaged(small, saved, name, how):
    """Adapter.load is the judge: the two must agree, also where the sha256 holds."""
    (DAMAGE | SEALED)[how](saved / name)
    if how in SEALED:
        reseal(saved, name)
    with pytest.raises(AdaptxError):
        Adapter.load(saved, small)
    (said,) = inspect.damage(saved)
    assert name in said


def test_a_manifest_that_names_a_file_elsewhere_is_damaged(saved, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    files = json.loads((saved / "adaptx.json").read_text())["files"]
    for name in ("../secret.json", str(tmp_path / "secret.json"), "", ".."):
        change(saved, files=files | {name: storage.sha256(tmp_path / "secret.json")})
        (said,) = inspect.damage(saved)
        assert "adaptx.json" in said


def test_pefts_folder_with_a_pickle_is_damaged(made, tmp_path):
    folder = shutil.copytree(made / "theirs", tmp_path / "theirs")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    (said,) = inspect.damage(folder)
    assert "pickle" in said


def test_a_renamed_adapter_is_the_same_under_its_new_name(small, saved):
    (saved / "notes").mkdir()
    (saved / "notes" / "mine.txt").write_text("mine")
    before = Adapter.load(saved, small)
    target = rename_folder(saved, "sw-news")
    assert (target.name, target.parent) == ("sw-news", saved.parent.resolve())
    assert [path.name for path in saved.parent.iterdir()] == ["sw-news"]
    after = Adapter.load(target, small)
    assert after.name == "sw-news"
    assert {file["state"] for file in inspect.details(target)["files"]} == {"whole"}
    assert "# sw-news\n" in (target / "README.md").read_text()
    assert (target / "notes" / "mine.txt").read_text() == "mine"
    texts = ["Timu imeshinda", "Habari"]
    assert small.predict(texts, after) == small.predict(texts, before)


@pytest.mark.parametrize("evaluated", [False, True])
@pytest.mark.parametrize("name", ["sw-news", "yes: {no} #1", "a|b"])
def test_a_renamed_adapters_card_is_as_if_it_had_had_the_name(saved, name, evaluated):
    if evaluated:
        scores = {"accuracy": 0.5, "macro_f1": 0.5, "weighted_f1": 0.5, "interval": [0.4, 0.6]}
        entry = {"file": "test.tsv", "rows": 9, "commonest": 0.5, "labels": {}, **scores}
        layout.record_evaluation(saved, {"sw": entry})
    target = rename_folder(saved, name)
    assert (target / "README.md").read_text() == model_card(layout.read_facts(target)[0])


def test_renaming_keeps_a_cards_words_and_hides_no_damage(saved):
    card = (saved / "README.md").read_text()
    (saved / "README.md").write_bytes(card.encode() + b"My own words, in Latin-1: \xe9.\n")
    flip(saved / "head.safetensors")
    target = rename_folder(saved, "sw-news")
    assert b"My own words, in Latin-1: \xe9.\n" in (target / "README.md").read_bytes()
    (said,) = inspect.damage(target)
    assert "head.safetensors was changed" in said


def test_pefts_folder_is_renamed(small, made, tmp_path):
    folder = shutil.copytree(made / "theirs", tmp_path / "theirs")
    assert Adapter.load(rename_folder(folder, "ours"), small).name == "ours"


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\nb", "probe"])
def test_a_name_that_cant_be_taken_is_refused(saved, name):
    (saved.parent / "probe").mkdir()
    with pytest.raises(OutputExists if name == "probe" else OptionError):
        rename_folder(saved, name)
    assert {path.name for path in saved.parent.iterdir()} == {"sw-topics", "probe"}
    assert inspect.damage(saved) == []


def test_a_rename_that_fails_leaves_all_as_it_was(saved):
    (saved / "big.txt").write_bytes(b"0" * 100_000)
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
from pathlib import Path
from adaptx.adapters.lora import unexpressed
from adaptx.adapters.rename import rename_folder
rename_folder(Path({str(saved)!r}), "sw-news")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "FolderError" in done.stderr
    assert "Nothing was left behind" in done.stderr
    assert [path.name for path in saved.parent.iterdir()] == ["sw-topics"]
    assert inspect.damage(saved) == []
