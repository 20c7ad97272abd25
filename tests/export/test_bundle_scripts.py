"""export/: a bundle made by the script, and answers from it where there is no torch."""

import json
import shutil
import subprocess
import sys

import pytest
from peft import LoraConfig

import adaptx as ax
from tests.conftest import ROOT

TEXTS = ["Timu yetu imeshinda", "Mgonjwa alipewa dawa", "今天天气很好", "The old bridge is closed"]


@pytest.fixture(scope="module")
def made(small, tmp_path_factory):
    """Two adapters, and the bundle that the script made of them."""
    folder = tmp_path_factory.mktemp("bundle")
    task = ax.tasks.Classification(("afya", "michezo", "siasa"))
    adapters = []
    for seed, name in enumerate(("sw", "yo")):
        config = LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear")
        adapters.append(ax.Adapter.new(small, task, config, name=name, language=name, seed=seed))
        adapters[-1].head.weight.data *= 20
        adapters[-1].save(folder / name)
    command = [sys.executable, str(ROOT / "export" / "make_bundle.py"), "--rounds", "1"]
    command += [str(folder / "sw"), str(folder / "yo"), "-o", str(folder / "made")]
    done = subprocess.run(
        [*command, "--encoder", str(small.folder)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert {"sw", "yo"} < last["parity"].keys() and last["size_mb"] > 1
    return adapters, folder / "made"


def answers(python, bundle, *options):
    command = [str(python), str(ROOT / "export" / "answer.py"), str(bundle), *options]
    done = subprocess.run(
        command, input="\n".join(TEXTS), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_who_reads_no_further_ends_the_answers_quietly(made):
    command = [sys.executable, str(ROOT / "export" / "answer.py"), str(made[1]), "--batch", "1"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        running.stdin.write(TEXTS[0] + "\n")
        running.stdin.flush()
        assert json.loads(running.stdout.readline())["text"] == TEXTS[0]
        running.stdout.close()
        running.stdin.write("\n".join(TEXTS))
        running.stdin.close()
        assert running.stderr.read() == ""
    assert running.returncode == 1


@pytest.mark.parametrize("option", ["--threads", "--rounds"])
def test_a_count_that_cant_be_is_refused_before_the_export(tmp_path, option):
    command = [sys.executable, str(ROOT / "export" / "make_bundle.py"), "x", option, "0"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "out")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert f"argument {option}: 0 must be at least 1" in done.stderr


@pytest.mark.slow
def test_the_script_answers_lines_by_adapter_and_by_language(small, made):
    adapters, bundle = made
    for adapter in adapters:
        wanted = small.predict(TEXTS, adapter)
        by_name = answers(sys.executable, bundle, "--adapter", adapter.name)
        assert by_name == answers(sys.executable, bundle, "--language", adapter.name)
        sure = [
            (a["label"], w.label) for a, w in zip(by_name, wanted, strict=True) if w.score > 0.6
        ]
        assert sure and all(found == label for found, label in sure)
    plain = answers(sys.executable, bundle)
    assert len(plain[0]["vector"]) == small.hidden_size


@pytest.mark.slow
@pytest.mark.parametrize("pinned", [True, False])
def test_a_fresh_environment_without_torch_answers_alike(made, tmp_path, pinned):
    """With the versions of constraints.txt, and with the newest there are."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    source = tmp_path / "source"  # a copy: pip builds in the tree that it is given
    shutil.copytree(ROOT / "adaptx", source / "adaptx")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    constraints = ["-c", str(ROOT / "constraints.txt")] if pinned else []
    install = [str(python), "-m", "pip", "install", "-q", *constraints, str(source)]
    subprocess.run(install, check=True, capture_output=True, timeout=600)
    for name in ("torch", "transformers", "peft", "onnx"):
        found = subprocess.run([str(python), "-c", f"import {name}"], capture_output=True)
        assert found.returncode != 0, name
    bundle = made[1]
    for options in (["--adapter", "sw"], ["--language", "yo"]):
        there, here = answers(python, bundle, *options), answers(sys.executable, bundle, *options)
        for found, wanted in zip(there, here, strict=True):
            # Another onnxruntime may sum in another order.
            assert found.pop("score") == pytest.approx(wanted.pop("score"), abs=0.02)
            assert found.pop("scores") == pytest.approx(wanted.pop("scores"), abs=0.02)
            assert found == wanted
