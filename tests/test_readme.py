"""What the README and the docs say can be run, runs."""

import json
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


def benchmark(name, *options):
    """What a benchmark printed last, and what it said on stderr."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.slow
def test_the_sib200_benchmark_prints_json_and_goes_on_from_its_cache(tmp_path):
    rows = [
        ("michezo", f"Timu ya mji wa {name} imeshinda mechi ya jana")
        for name in ("Mwanza", "Arusha", "Tanga", "Dodoma", "Moshi", "Lindi", "Mbeya", "Songea")
    ] + [
        ("afya", f"Daktari wa {name} alimpa mgonjwa dawa mpya")
        for name in ("Mwanza", "Arusha", "Tanga", "Dodoma", "Moshi", "Lindi", "Mbeya", "Songea")
    ]
    folder = tmp_path / "data" / "sib200" / "swh_Latn"
    folder.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        lines = [f"{i}\t{label}\t{text}" for i, (label, text) in enumerate(rows)]
        (folder / f"{split}.tsv").write_text("\n".join(["index_id\tcategory\ttext", *lines]))
    options = (
        "--langs", "swh_Latn", "--seeds", 1, "--methods", "lora,probe",
        "--data", tmp_path / "data", "--cache", tmp_path / "cache",
    )  # fmt: skip
    found, said = benchmark("sib200", *options)
    again, said_again = benchmark("sib200", *options)
    assert found == again
    assert ("seed 0 …" in said, "seed 0 …" in said_again) == (True, False)
    lora = found["swh_Latn"]["lora"]
    assert lora["accuracy"] == 1.0
    assert 0.01 < lora["trainable_share"] < 0.013
    assert {"accuracy", "macro_f1", "trainable_share", "seconds"} <= lora.keys()
    assert found["swh_Latn"]["probe"]["trainable_share"] < 1e-4


@pytest.mark.slow
def test_the_masakhaner_benchmark_prints_json_and_goes_on_from_its_cache(tmp_path):
    folder = tmp_path / "data" / "masakhaner1" / "swa"
    folder.mkdir(parents=True)
    names = (ROOT / "recipes" / "data" / "tasks" / "names.conll").read_text()
    for split in ("train", "dev", "test"):
        (folder / f"{split}.txt").write_text(names)
    options = (
        "--langs", "swa", "--seeds", 1, "--data", tmp_path / "data", "--cache", tmp_path / "cache",
    )  # fmt: skip
    found, said = benchmark("masakhaner", *options)
    again, said_again = benchmark("masakhaner", *options)
    assert found == again
    assert ("seed 0 …" in said, "seed 0 …" in said_again) == (True, False)
    lora = found["swa"]["lora"]
    assert lora["f1"] == found["mean"]["lora"]["f1"]
    assert {"precision", "recall", "accuracy", "dev", "epoch", "seconds"} <= lora.keys()
    assert 0.01 < lora["trainable_share"] < 0.013


@pytest.mark.slow
def test_the_recipe_for_names_trains_scores_exports_and_tags(tmp_path):
    folder = tmp_path / "names"
    folder.mkdir()
    names = (ROOT / "recipes" / "data" / "tasks" / "names.conll").read_text()
    for split in ("train", "dev", "test"):
        (folder / f"{split}.txt").write_text(names)
    command = [
        sys.executable, str(ROOT / "recipes" / "ner_masakhaner.py"), "--data", str(folder),
        "--epochs", "40", "--output", str(tmp_path / "out"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    score = float(re.search(r"^test F1 ([\d.]+)", done.stdout, re.M)[1])
    assert score > 0.5  # of the sentences that it was trained on
    assert len(re.findall(r"^  (?:PER|ORG|LOC|DATE) ", done.stdout, re.M)) == 4
    assert f"int8: dev F1 {score:.3f} ->" in done.stdout
    assert (tmp_path / "out" / "ner" / "adaptx.json").is_file()
    assert (tmp_path / "out" / "bundle" / "bundle.json").is_file()


@pytest.mark.slow
def test_the_afrisenti_benchmark_reads_tweets_and_prints_json(tmp_path):
    import gzip

    folder = tmp_path / "afrisenti" / "swa"
    folder.mkdir(parents=True)
    tweets = [
        ("positive", 'Nimefurahi sana leo, "asante" rafiki'),
        ("negative", "Huduma yao ni mbaya mno"),
        ("neutral", "Mkutano utaanza saa tatu"),
    ]
    lines = "".join(f"{tweet}\t{label}\n" for label, tweet in tweets * 4)
    for split in ("train", "dev", "test"):
        with gzip.open(folder / f"{split}.tsv.gz", "wt") as file:
            file.write("tweet\tlabel\n" + lines)
    options = ("--langs", "swa", "--seeds", 1, "--data", tmp_path, "--cache", tmp_path / "cache")
    found, _ = benchmark("afrisenti", *options)
    assert found["swa"]["lora"]["weighted_f1"] > 0.9  # of the tweets that it was trained on


@pytest.mark.slow
def test_the_retrieval_benchmark_joins_rows_by_their_index(tmp_path):
    texts = {
        "swh": ["Mvua inanyesha leo.", "Paka analala juu ya meza.", "Nimenunua mkate asubuhi."],
        "eng": ["It is raining today.", "The cat sleeps on the table.", "I bought bread at dawn."],
    }
    for lang, folder in (("swh", "swh_Latn"), ("eng", "eng_Latn")):
        (tmp_path / "sib200" / folder).mkdir(parents=True)
        rows = list(enumerate(texts[lang]))
        for split in ("train", "dev"):
            lines = [f"{i}\tany\t{text}" for i, text in (rows if lang == "swh" else rows[::-1])]
            (tmp_path / "sib200" / folder / f"{split}.tsv").write_text(
                "\n".join(["index_id\tcategory\ttext", *lines]) + "\n"
            )
    (tmp_path / "tatoeba" / "swh").mkdir(parents=True)
    for lang, lines in texts.items():
        (tmp_path / "tatoeba" / "swh" / f"test.{lang}").write_text("\n".join(lines) + "\n")
    found, _ = benchmark(
        "retrieval", "--langs", "swh", "--seeds", 1, "--methods", "lora,plain",
        "--data", tmp_path, "--cache", tmp_path / "cache",
    )  # fmt: skip
    assert found["swh"]["lora"]["dev"] == 1.0  # each row found its own translation
    assert found["swh"]["plain"]["trainable_share"] == 0
    assert found["differences"]["lora - plain"]["rows"] == 3

    sib200, tatoeba = tmp_path / "sib200", tmp_path / "tatoeba" / "swh"
    command = [
        sys.executable, str(ROOT / "recipes" / "retrieval_tatoeba.py"), "--rows",
        str(sib200 / "swh_Latn"), "--english", str(sib200 / "eng_Latn"), "--test",
        f"{tatoeba / 'test.swh'},{tatoeba / 'test.eng'}", "--output", str(tmp_path / "search"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "search: accuracy 1.000" in done.stdout
    assert f"{texts['swh'][0]}\n  {texts['eng'][0]}\n" in done.stdout
