"""`adaptx verify`: a bundle that is whole, one that answers otherwise, and one that was changed."""

import json
import shutil
import subprocess
import sys

import pytest

from adaptx import storage
from adaptx.errors import FolderError
from adaptx.runtime.layout import BundleFacts, read_bundle, write_bundle
from adaptx.runtime.verify import Probe, read_probe, write_probe
from tests.cli.test_adapters import adaptx
from tests.cli.test_cli import refused
from tests.test_layout import HEAVY


def test_a_bundle_is_verified_by_adapter(bundle, capsys):
    assert adaptx("verify", bundle, "--threads", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["(no", "sw", "yo", "probe"]
    assert adaptx("verify", bundle, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["quantization"]) == (True, "int8")
    assert found["adapters"]["sw"]["agreement_but_for_ties"] >= 0.9


def test_an_adapter_out_of_bounds_is_named_and_exits_1(bundle, tmp_path, capsys):
    folder = tmp_path / "other"
    shutil.copytree(bundle, folder)
    probe = read_probe(folder)
    outputs = {**probe.outputs, "yo": -probe.outputs["yo"]}
    write_probe(folder, Probe(probe.ids, outputs))
    facts, _ = read_bundle(folder)
    assert isinstance(facts, BundleFacts)
    write_bundle(folder, facts)
    assert adaptx("verify", folder) == 1
    said = capsys.readouterr().out
    assert "yo (int8): largest relative difference" in said
    assert "1 of 4 are out of bounds" in said
    assert adaptx("verify", folder, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert [name for name, one in found["adapters"].items() if one["failed"]] == ["yo"]


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json"])
def test_a_changed_byte_is_refused(bundle, tmp_path, name):
    folder = tmp_path / "changed"
    shutil.copytree(bundle, folder)
    with (folder / name).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"!")
    with pytest.raises(FolderError, match=f"{name} was changed or damaged"):
        adaptx("verify", folder)


def test_what_is_no_bundle_is_refused(three, tmp_path):
    assert "There is no bundle" in refused("verify", tmp_path / "nothing")
    assert storage.BUNDLE in refused("verify", three["sw"])


def test_verify_and_bench_load_no_torch(bundle):
    code = f"""
import sys
from adaptx.cli.main import app
bundle = {str(bundle)!r}
for command in (["verify", bundle, "--json"],
                ["bench", bundle, "--threads", "1", "--shapes", "1x8", "--rounds", "1"]):
    assert not app(command, standalone_mode=False), command
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "['onnxruntime']", done.stderr
