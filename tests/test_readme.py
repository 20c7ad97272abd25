"""What the README and the docs say can be run, runs."""

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "export" / "README.md"]


def blocks(page, language=""):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


@pytest.mark.slow
@pytest.mark.optimum
def test_the_readmes_python_runs(tmp_path):
    (code,) = blocks(ROOT / "README.md", "python")
    assert "epochs=12" in code
    code = code.replace("epochs=12", "epochs=1")
    code += "\nprint(report['int8']['sw-topics']['agreement_but_for_ties'])\n"
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) >= 0.9
    assert (tmp_path / "adapters" / "sw-topics" / "adapter_model.safetensors").is_file()


def commands():
    """Every command of adaptx by its full name ("train", "runs list"), groups left out."""
    from typer.main import get_command

    from adaptx.cli.main import app

    waiting, found = [("", get_command(app))], {}
    while waiting:
        name, command = waiting.pop()
        if hasattr(command, "commands"):
            waiting += [(f"{name} {own}".strip(), sub) for own, sub in command.commands.items()]
        else:
            found[name] = command
    return found


def test_every_command_and_option_that_a_page_names_exists():
    known = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in commands().items()
    }
    named = [
        line
        for page in PAGES
        for block in blocks(page, "[a-z]*")
        for line in block.splitlines()
        if re.match(r"(accelerate launch -m )?adaptx [^-]", line)
    ]
    assert len(named) >= 3
    for line in named:
        words = line.split("adaptx ", 1)[1].split()
        used = {word for word in words if re.fullmatch(r"--?[a-z][a-z-]*", word)}
        command = words[0] if words[0] in known else " ".join(words[:2])
        assert command in known, line
        assert used <= known[command], line


def test_every_page_that_a_page_links_to_exists():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_make_target_that_a_page_names_exists():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / ".ci" / "run"]:
        for target in re.findall(r"^make ([a-z0-9-]+)", page.read_text(), re.M):
            assert target in targets, f"{page.name}: {target}"


def test_no_placeholder_was_left():
    for page in [*PAGES, *(ROOT / "recipes").glob("*.py")]:
        assert "@" * 2 not in page.read_text(), page.name


@pytest.mark.slow
@pytest.mark.optimum
def test_the_recipe_runs_by_accelerate_launch(tmp_path):
    """A few epochs, into a folder of its own: every part that the docstring promises."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    command = [*launcher, str(ROOT / "recipes" / "lora_sw.py"), "--epochs", "6"]
    environment = {**os.environ, "COLUMNS": "120"}
    output = ["--output", str(tmp_path / "out")]
    done = subprocess.run(
        command + output, capture_output=True, text=True, timeout=900, env=environment
    )
    assert done.returncode == 0, done.stderr
    for part in ("sw-topics", "sw-probe", "onnx", "onnx-int8"):
        assert (tmp_path / "out" / part / "adaptx.json").is_file()
    assert "One batch, an adapter for each row" in done.stdout
    for said in ("probe", "LoRA, torch", "ONNX", "ONNX int8", "dev accuracy", "none", "vector"):
        assert said in done.stdout
    again = subprocess.run(
        [sys.executable, *command[3:], *output],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
    assert "Traceback" not in again.stderr
