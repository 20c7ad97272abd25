"""What holds for every command: its place in docs/commands.md, its help, completion."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from adaptx.cli.main import app
from tests.cli.test_cli import run
from tests.conftest import ROOT
from tests.test_readme import commands

PAGE = (ROOT / "docs" / "commands.md").read_text()
ROWS = dict(re.findall(r"^\| `adaptx ([^`]+)` \| .* \| ([0-9, ]+) \|$", PAGE, re.M))


def test_every_command_stands_on_the_page_and_the_page_has_no_other():
    assert set(ROWS) == set(commands())


def test_every_command_has_a_line_of_help_and_examples_of_itself():
    for name, command in commands().items():
        assert command.help, name
        examples = [line.strip() for line in (command.epilog or "").splitlines()]
        mine = [line for line in examples if re.match(rf"(accelerate .* )?adaptx {name}\b", line)]
        assert mine, f"adaptx {name} --help has no example"
        known = {option for parameter in command.params for option in parameter.opts}
        for line in mine:
            used = {word for word in line.split() if re.fullmatch(r"--?[a-z][a-z-]*", word)}
            assert used - {"-m"} <= known, line


def test_help_shows_the_examples_and_the_defaults_of_options():
    said = run("runs", "list", "--help").stdout
    assert "adaptx runs list" in said
    assert "[default: $ADAPTX_RUNS" in said


def test_no_help_of_an_option_is_taken_for_markup():
    """An unescaped [default: …] would vanish from the help."""
    for name, command in commands().items():
        for option in command.params:
            assert not re.search(r"(?<!\\)\[", getattr(option, "help", None) or ""), (name, option)


def inside(*arguments):
    """A command in this process, up to the error that it raises: quicker than a process each."""
    get_command(app).main([str(word) for word in arguments], standalone_mode=False)


def complete(line):
    """What the shell's completion offers after `line`, asked as bash asks."""
    words = line.split(" ")
    done = subprocess.run(
        [Path(sys.executable).with_name("adaptx")],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "_ADAPTX_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("adaptx tr", ["train"]),
        ("adaptx runs ", ["list", "compare", "plot"]),
        ("adaptx train --precis", ["--precision"]),
        ("adaptx train --method pr", ["probe"]),
    ],
)
def test_the_shell_completes_commands_options_and_choices(line, offered):
    assert complete(line) == offered


def test_completion_can_be_installed():
    assert "--install-completion" in run("--help").stdout
