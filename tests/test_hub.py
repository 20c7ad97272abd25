"""The Hub, by real processes against a server on loopback that speaks its API."""

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys

import pytest
from peft import LoraConfig
from safetensors.numpy import load_file, save

from adaptx import Adapter, Encoder, tasks
from tests.adapters.peft_oracle import peft_model
from tests.cli.test_cli import refused, run
from tests.hub_server import running_hub

CONFIG = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
TASK = tasks.Classification(("michezo", "siasa", "afya"))


@pytest.fixture(scope="module")
def folders(small, tmp_path_factory):
    """An adapter of ours, one of PEFT's, and one that is damaged."""
    top = tmp_path_factory.mktemp("folders")
    Adapter.new(small, TASK, CONFIG, name="sw-topics", language="sw").save(top / "sw-topics")
    peft_model(small.folder, {"default": CONFIG}).save_pretrained(str(top / "theirs"))
    shutil.copytree(top / "sw-topics", top / "damaged")
    with (top / "damaged" / "head.safetensors").open("ab") as file:
        file.write(b"more")
    return top


@pytest.fixture
def hub():
    with running_hub() as server:
        yield server


def python(code, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_push_writes_the_folder_into_a_new_repository(hub, folders, tmp_path):
    source = folders / "sw-topics"
    environment = hub.environment(tmp_path)
    done = run("push", source, "somebody/sw-topics", "--private", **environment)
    repository = hub.repositories["somebody/sw-topics"]
    commit = repository.refs["main"]
    assert f"Pushed 5 files, 0.0 MB: {hub.url}/somebody/sw-topics/commit/{commit}" in done.stdout
    assert repository.private
    assert repository.messages[-1] == "sw-topics, by adaptx"
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    assert {".gitattributes", *files} == repository.files().keys()
    assert all(repository.files()[name] == content for name, content in files.items())


OPEN_BOTH = """
import json, sys
import adaptx as ax
name, older, local = sys.argv[1:]
encoder = ax.Encoder.from_pretrained("somebody/tiny-encoder", revision=older)
newest = ax.Encoder.from_pretrained("somebody/tiny-encoder")
here = ax.Adapter.load(local, encoder)
there = ax.Adapter.from_pretrained(name, encoder)
assert ax.Adapter.from_pretrained(name, revision="main").facts == there.facts == here.facts
assert ax.Adapter.from_pretrained(local).facts == here.facts
ours, theirs = here.state_dict(), there.state_dict()
assert ours.keys() == theirs.keys()
same = all(bool((ours[key] == theirs[key]).all()) for key in ours)
texts = ["Timu imeshinda"]
same = same and encoder.predict(texts, there) == encoder.predict(texts, here)
print(json.dumps([same, encoder.fingerprint, newest.fingerprint]))
"""


@pytest.mark.slow
def test_what_was_pushed_comes_back_equal_with_its_encoder_also_offline(
    hub, small, folders, tmp_path
):
    """The encoder in two commits with other weights: another encoder, by its fingerprint."""
    source = shutil.copytree(small.folder, tmp_path / "tiny")
    (source / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    (source / "modeling_evil.py").write_text("raise SystemExit")
    repository = hub.add("somebody/tiny-encoder", source)
    older = repository.refs["main"]
    weights = load_file(small.folder / "model.safetensors")
    changed = save({key: tensor + 1e-3 for key, tensor in weights.items()}, {"format": "pt"})
    repository.commit(repository.files() | {"model.safetensors": changed})

    run("push", folders / "sw-topics", "somebody/sw", **hub.environment(tmp_path / "pusher"))
    fresh = hub.environment(tmp_path / "fresh")
    hub.asked.clear()
    arguments = ("somebody/sw", older, str(folders / "sw-topics"))
    same, fingerprint, newest = python(OPEN_BOTH, *arguments, **fresh)
    assert same
    assert fingerprint == small.fingerprint != newest
    got = {line.rpartition("/")[2] for line in hub.asked if "/resolve/" in line}
    wanted = [*small.folder.iterdir(), *(folders / "sw-topics").iterdir()]
    assert got == {path.name for path in wanted}
    hub.asked.clear()
    offline = fresh | {"HF_HUB_OFFLINE": "1"}
    assert python(OPEN_BOTH, *arguments, **offline) == [True, fingerprint, newest]
    assert hub.asked == []


def test_a_later_push_replaces_what_the_earlier_one_wrote(hub, folders, tmp_path):
    environment = hub.environment(tmp_path)
    run("push", folders / "sw-topics", "somebody/one", **environment)
    mine = hub.repositories["somebody/one"]
    mine.commit(mine.files() | {"LICENSE": b"mine", "config.json": b"{}"})
    run("push", folders / "theirs", "somebody/one", **environment)
    ours, theirs = ({p.name for p in (folders / n).iterdir()} for n in ("sw-topics", "theirs"))
    assert theirs < ours
    assert mine.files().keys() == {".gitattributes", "LICENSE", "config.json", *theirs}
    done = run("adapters", "verify", "somebody/one", **environment)
    assert done.stdout == "somebody/one: whole.\n"


def test_a_branch_is_pushed_to_and_read_by_its_name(hub, folders, tmp_path):
    environment = hub.environment(tmp_path)
    run("push", folders / "sw-topics", "somebody/one", **environment)
    done = run(
        "push", folders / "theirs", "somebody/one", "--revision", "v2", "--message", "By PEFT",
        "--json", **environment,
    )  # fmt: skip
    told = json.loads(done.stdout)
    repository = hub.repositories["somebody/one"]
    assert told["revision"] == "v2"
    assert told["address"].endswith(repository.refs["v2"])
    assert repository.messages[-1] == "By PEFT"
    writers = []
    for name in ("somebody/one", "somebody/one@main", "somebody/one@v2"):
        found = json.loads(run("adapters", "show", name, "--json", **environment).stdout)
        writers.append((found["written_by"], found["name"]))
    assert writers == [("adaptx", "sw-topics"), ("adaptx", "sw-topics"), ("PEFT", "one")]


def test_no_pickle_and_no_code_is_downloaded(hub, folders, tmp_path):
    evil = shutil.copytree(folders / "sw-topics", tmp_path / "evil")
    for name in ("adapter_model.bin", "optimizer.pt", "evil.py", "training_args.bin"):
        (evil / name).write_bytes(pickle.dumps({}))
    hub.add("somebody/evil", evil)
    run("adapters", "verify", "somebody/evil", **hub.environment(tmp_path / "cache"))
    got = {line.rpartition("/")[2] for line in hub.asked if "/resolve/" in line}
    assert got == {path.name for path in (folders / "sw-topics").iterdir()}


REFUSED = {
    "unknown": ("somebody/none", {}, "the Hub has no repository 'somebody/none'"),
    "unknown, no token": ("somebody/none", {"HF_TOKEN": ""}, "`hf auth login`"),
    "private": ("somebody/private", {"HF_TOKEN": ""}, "`hf auth login`"),
    "gated": ("somebody/gated", {"HF_TOKEN": ""}, "is gated: ask for access"),
    "revision": ("somebody/private@v9", {}, "has no revision 'v9'"),
    "offline": ("somebody/private", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
    "no adapter": ("somebody/plain", {}, "holds no adapter"),
    "a pickle": ("somebody/pickle", {}, "adapter_model.bin"),
    "no name": ("no/such/folder", {}, "There is no adapter folder no/such/folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cant_be_read_is_refused_with_its_remedy(hub, folders, tmp_path, case):
    hub.add("somebody/private", folders / "sw-topics", private=True)
    hub.add("somebody/gated", folders / "sw-topics", gated=True)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "config.json").write_text("{}")
    hub.add("somebody/plain", tmp_path / "plain")
    shutil.copytree(folders / "theirs", tmp_path / "pickle")
    weights = tmp_path / "pickle" / "adapter_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    hub.add("somebody/pickle", tmp_path / "pickle")
    name, environment, said = REFUSED[case]
    asked = hub.environment(tmp_path / "cache") | environment
    assert said in refused("adapters", "show", name, **asked)


def test_a_hub_that_cant_be_reached_is_said(hub, folders, tmp_path):
    with socket.socket() as taken:  # bound and never listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        away = hub.environment(tmp_path)
        away["HF_ENDPOINT"] = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert "can't be reached" in refused("adapters", "show", "somebody/one", **away)
        said = refused("push", folders / "sw-topics", "somebody/one", **away)
    assert "can't be reached to write 'somebody/one'" in said


UNPUSHED = {
    "damaged": ("damaged", "somebody/one", {}, "is damaged, so it isn't pushed"),
    "no adapter": (".", "somebody/one", {}, "is no adapter's folder"),
    "name": ("sw-topics", "one", {}, "give it as user/name"),
    "revision in the name": ("sw-topics", "somebody/one@v2", {}, "--revision"),
    "no token": ("sw-topics", "somebody/one", {"HF_TOKEN": ""}, "`hf auth login`"),
    "wrong token": ("sw-topics", "somebody/one", {"HF_TOKEN": "hf_wrong"}, "`hf auth login`"),
    "another's": ("sw-topics", "another/one", {}, "(403)"),
    "offline": ("sw-topics", "somebody/one", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
}


@pytest.mark.parametrize("case", UNPUSHED)
def test_what_cant_be_pushed_is_refused_and_nothing_is_made(hub, folders, tmp_path, case):
    folder, repository, environment, said = UNPUSHED[case]
    asked = hub.environment(tmp_path) | environment
    assert said in refused("push", folders / folder, repository, **asked)
    assert hub.repositories == {}


def test_a_dry_run_asks_the_hub_nothing(hub, folders, tmp_path):
    asked = hub.environment(tmp_path)
    done = run("push", folders / "sw-topics", "somebody/one", "--dry-run", **asked)
    assert "Would push" in done.stdout
    assert "adapter_model.safetensors" in done.stdout
    assert hub.asked == []


@pytest.mark.parametrize("name", ["enc/roberta", "enc/../enc/roberta"])
def test_an_encoder_that_is_a_folder_here_is_said_to_be_found_nowhere_else(
    small_folders, tmp_path, monkeypatch, name
):
    (tmp_path / "enc").mkdir()
    (tmp_path / "enc" / "roberta").symlink_to(small_folders["roberta"])
    monkeypatch.chdir(tmp_path)
    folder = Adapter.new(Encoder.from_pretrained(name), TASK, None, name="p").save("p")
    done = run("push", folder, "somebody/one", "--dry-run")
    assert f"named {name!r}, which others may not find" in done.stdout


def test_a_bundled_encoder_is_said_to_need_adaptx(encoder, tmp_path):
    folder = Adapter.new(encoder, TASK, None, name="probe").save(tmp_path / "probe")
    done = run("push", folder, "somebody/one", "--dry-run")
    assert "bundled:multilingual-e5-small, comes with adaptx[bundled]" in done.stdout
