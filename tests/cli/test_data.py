"""`adaptx data`, run as users run it; and docs/data.md: its files are written, its commands run."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from adaptx.data.encode import TextEncoder
from adaptx.data.large import open_records
from adaptx.data.read import find_split, read_examples
from adaptx.encoder.bundled import bundled_folder
from adaptx.errors import DataError
from adaptx.tasks import make_task
from tests.cli.test_cli import refused, run
from tests.conftest import ROOT, SAMPLE

TASKS = ROOT / "recipes" / "data" / "tasks"
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w.-]+)`:\n\n```\w*\n(.*?)^```$", PAGE, re.M | re.S))
COMMANDS = re.findall(r"^adaptx (data .*)$", PAGE, re.M)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The page's example files, in the current folder."""
    for name, content in FILES.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_shows_each_format(folder):
    assert {name.rpartition(".")[2] for name in FILES} >= {"jsonl", "tsv", "conll", "json", "sw"}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_pages_commands_run_on_the_pages_files(folder, command):
    words = shlex.split(command)
    if "check" in words:
        words += ["--encoder", "none"]  # a tokenizer takes seconds; the test below has one
    assert run(*words).stdout


def test_the_pages_python_runs(folder):
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
    imports, _, calls = code.partition("\n\n")
    scope: dict = {}
    exec(imports, scope)
    assert [eval(call, scope) for call in calls.splitlines()] == [
        "positive",
        ("O", "B-PER", "I-PER"),
        (("Dodoma", 24),),
        "Good morning",
        "Mgonjwa alipewa dawa",
    ]


def test_check_tells_what_is_wrong_and_exits_with_1(tmp_path):
    train, test = tmp_path / "train.tsv", tmp_path / "test.tsv"
    train.write_text("text\tlabel\nHabari\tx\n[b]moja\ty\nHabari\ty\n\tx\nmbili\n")
    test.write_text("text\tlabel\nHABARI\tx\nnne\tz\n")
    done = run("data", "check", train, "--against", test, "--encoder", "none", code=1)
    for said in (
        f"{train}: 5 rows, 2 of them bad.",
        "line 5: the text (column 'text') is empty",
        "line 6: 1 fields, and the header has 2",
        "duplicates: 1 the same to the last character",
        "1 with another label (lines 2 and 4)",
        f"{test}: 2 rows; leaks: 0 the same to the last character, 1 but for case",
        f"{test} has labels that {train} lacks: z.",
        "length in characters",
    ):
        assert said in done.stdout, said
    found = json.loads(run("data", "check", train, "-e", "none", "--json", code=1).stdout)
    assert (found["rows"], found["bad_rows"], found["clean"]) == (5, 2, False)
    assert found["problems"][0]["lines"] == [5]


@pytest.mark.parametrize(
    ("name", "content", "task", "options", "line", "said"),
    [
        ("a.tsv", "text\tother\tscore\na\tb\t1\nc\td\thigh\n", "similarity", {}, 3, "'high'"),
        ("a.tsv", "text\tother\tlabel\na\tb\tx\nc\td\t\n", "pairs", {}, 3, "no label"),
        ("a.conll", "a B-X\nb O\n\nc PER\n", "token-classification", {}, 4, "none of BIO's"),
        ("a.conll", "a B-X\nb O\n\nc I-X\n", "token-classification", {}, 4, "--repair"),
        ("a.conll", "a B-X\nb O\n\nc I-X\n", "token-classification", {"repair": True}, 0, ""),
        ("a.conll", "a B-X\n\nb Q-X\n", "token-classification", {"repair": True}, 3, "BIO's"),
        ("a.conll", "a NOUN\n\nb VERB\n", "token-classification", {"scheme": "plain"}, 0, ""),
        ("a.tsv", "text\tlabels\na\tx|y\nb\tz\n", "multi-label", {}, 0, ""),
    ],
)
def test_check_refuses_the_rows_that_training_does(
    tmp_path, name, content, task, options, line, said
):
    (tmp_path / name).write_text(content)
    words = [f"--{key}" if value is True else f"--{key}={value}" for key, value in options.items()]
    check = ["data", "check", tmp_path / name, "--task", task, "-e", "none", "--json", *words]
    asked, problems = make_task(task, **options), []
    try:
        asked.fit(open_records(tmp_path / name, task))
    except DataError as error:
        problems = [error.line]
    found = json.loads(run(*check, code=1 if line else 0).stdout)
    assert [problem["lines"] for problem in found["problems"]] == [[line] for line in problems]
    assert problems == ([line] if line else [])
    assert (not said and found["clean"]) or said in found["problems"][0]["message"]
    against = json.loads(run(*check, "--against", tmp_path / name, code=1 if line else 0).stdout)
    assert against["leaks"][0]["bad_rows"] == len(problems)


def test_pairs_need_no_label_where_none_has_one(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "other": "b"}\n{"text": "c", "other": "d"}\n')
    run("data", "check", path, "--task", "pairs", "-e", "none")
    path.write_text(path.read_text() + '{"text": "e", "other": "f", "label": "x"}\n')
    found = json.loads(
        run("data", "check", path, "--task", "pairs", "-e", "none", "--json", code=1).stdout
    )
    assert (found["bad_rows"], found["problems"][0]["lines"]) == (2, [1, 2])


def reading(folder, limit):
    """A tokenizer of words, in the folder of an encoder that reads so many tokens."""
    special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    words = {token: i for i, token in enumerate(special)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"model_type": "bert", "vocab_size": 5, "max_position_embeddings": limit}
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": 1}))
    return tokenizer


LONG, SHORT = "Mvua ilinyesha usiku kucha. " * 4, "Paka alilala."
TEXTS, NONE = (LONG * 2, SHORT, LONG), {"text": [], "answer_start": []}
BOTH = {"text": LONG, "other": SHORT, "label": "1"}, {"text": SHORT, "other": SHORT, "label": "2"}


@pytest.mark.parametrize(
    ("task", "rows"),
    [
        ("classification", [{"text": LONG * 2, "label": "a"}, {"text": SHORT, "label": "b"}]),
        ("pairs", [{"text": LONG, "other": LONG, "label": "a"}, *BOTH]),
        ("similarity", [*BOTH, {"text": SHORT, "other": LONG * 2, "label": "3"}]),
        ("masked-language", [{"text": text} for text in TEXTS]),
        (
            "token-classification",
            [{"tokens": text.split(), "tags": ["O"] * len(text.split())} for text in TEXTS],
        ),
        (
            "extractive-summarization",
            [{"text": text, "summary": SHORT} for text in TEXTS],
        ),
        (
            "question-answering",
            [{"id": text, "question": "Nini?", "context": text, "answers": NONE} for text in TEXTS],
        ),
    ],
)
def test_check_measures_rows_as_their_task_reads_them(tmp_path, task, rows):
    text = TextEncoder(reading(tmp_path, 40), pad_id=1, max_length=40)
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    check = ["data", "check", path, "--task", task, "-e", tmp_path]
    ((name, found),) = json.loads(run(*check, "--json").stdout)["lengths"].items()
    asked, records = make_task(task), open_records(path, task)
    windows = asked.windows(text, "", asked.inputs(records))
    cut = sum(its[0].cut > 0 for its in windows) / len(rows)
    several = sum(len(its) > 1 for its in windows) / len(rows)
    assert cut + several > 0
    assert (found["truncated"] or 0, found["windowed"] or 0) == pytest.approx((cut, several))
    assert (found["windowed"] is None) == bool(cut)
    assert " and ".join(records[0].texts) == name
    assert several or found["max"] == max(len(its[0].ids) + its[0].cut for its in windows)
    assert ("several windows" if several else "too long") in run(*check).stdout


def test_check_counts_the_tokens_of_an_encoder(tmp_path):
    source = bundled_folder("multilingual-e5-small")
    shutil.copy(source / "tokenizer.json", tmp_path)
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 16}))
    done = run("data", "check", SAMPLE / "dev.jsonl", "--json", "-e", tmp_path)
    found = json.loads(done.stdout)
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    rows = read_examples(SAMPLE / "dev.jsonl")
    lengths = sorted(len(tokenizer.encode(row.text).ids) for row in rows)
    assert (found["unit"], found["rows"]) == ("tokens", 56)
    assert found["lengths"]["text"]["min"] == lengths[0]
    assert found["lengths"]["text"]["max"] == lengths[-1]
    assert found["lengths"]["text"]["truncated"] == pytest.approx(sum(n > 16 for n in lengths) / 56)
    assert found["labels"]["sports"] == 8


def test_a_file_that_cannot_be_read_is_one_paragraph_and_exit_code_2(tmp_path):
    assert "no such file" in refused("data", "check", tmp_path / "none.tsv", "-e", "none")
    said = refused("data", "check", "hf:./none:train", "-e", "none", HF_HUB_OFFLINE="1")
    assert "there is no folder" in said


def without(package, *arguments):
    """The command in a process in which `package` can't be imported."""
    words = ["adaptx", *map(str, arguments)]
    code = f"import sys; sys.modules[{package!r}] = None; sys.argv = {words!r}\n"
    code += "from adaptx.cli.main import main; main()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_without_torch_lengths_are_in_characters():
    done = without("torch", "data", "check", SAMPLE / "dev.jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    assert "length in characters" in done.stdout


@pytest.mark.parametrize(
    ("package", "source"), [("datasets", "hf:a/b:c"), ("pyarrow", "a.parquet")]
)
def test_a_package_that_is_missing_is_named_with_its_extra(package, source):
    done = without(package, "data", "check", source, "-e", "none")
    assert done.returncode == 2
    assert f"needs the package '{package}'" in done.stderr and "adaptx[train]" in done.stderr


def test_split_writes_parts_that_training_finds(tmp_path):
    output = tmp_path / "split"
    done = run("data", "split", SAMPLE / "train.jsonl", "-o", output, "--dry-run")
    assert "Would write" in done.stdout and "train (134)" in done.stdout
    assert list(tmp_path.iterdir()) == []
    counts = json.loads(run("data", "split", SAMPLE / "train.jsonl", "-o", output, "--json").stdout)
    parts = {name: read_examples(find_split(output, name)) for name in ("train", "dev", "test")}
    assert {name: len(part) for name, part in parts.items()} == {
        name: sum(found.values()) for name, found in counts.items()
    }
    assert sum(map(len, parts.values())) == 168
    assert set(counts["train"].values()) <= {18, 19, 20}
    assert "--overwrite" in refused("data", "split", SAMPLE / "train.jsonl", "-o", output)


@pytest.mark.parametrize(
    ("task", "name", "counts"),
    [
        ("token-classification", "names.conll", {"B-DATE": 5, "O": 44}),
        ("question-answering", "questions.json", {"answered": 9}),
        ("retrieval", "translations.tsv", {"no label": 12}),
        ("similarity", "nearness.tsv", {"scored": 10}),
    ],
)
def test_split_reads_the_rows_of_a_task(tmp_path, task, name, counts):
    common = ["data", "split", TASKS / name, "--task", task, "--shares", "60,20,20"]
    found = json.loads(run(*common, "-o", tmp_path / "s", "--json").stdout)
    for label, count in counts.items():
        assert sum(part[label] for part in found.values()) == count
    assert json.loads((tmp_path / "s" / "adaptx.json").read_text())["task"] == task
    run("data", "check", tmp_path / "s" / "test.jsonl", "--task", task, "-e", "none")


def test_split_takes_the_columns_of_a_pair(tmp_path):
    lines = "".join(f"Swali {i}\tJibu {i}\n" for i in range(9))
    (tmp_path / "p.tsv").write_text("a\tb\n" + lines)
    common = ["data", "split", tmp_path / "p.tsv", "-o", tmp_path / "s", "--task", "pairs"]
    run(*common, "--text-column", "a", "--other-column", "b", "--shares", "60,20,20")
    rows = (tmp_path / "s" / "dev.jsonl").read_text().splitlines()
    assert [json.loads(row).keys() for row in rows] == [{"text", "other"}] * len(rows)


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ("80,10", "must sum to 100, and they sum to 90"),
        ("a,b", "numbers are needed"),
        ("25,25,25,25", "numbers are needed, such as 80,10,10"),
        ("train=50,exam=50", "exam is none of train, dev, test"),
        ("train=50,train=50", "must sum to 100"),
        ("nan,50,50", "must sum to 100"),
        ("110,-10", "each above 0"),
    ],
)
def test_shares_that_are_no_shares_are_refused(tmp_path, shares, said):
    output = tmp_path / "split"
    found = refused("data", "split", SAMPLE / "dev.jsonl", "-o", output, "--shares", shares)
    assert said in found
    assert list(tmp_path.iterdir()) == []


def test_convert_refuses_what_is_there(tmp_path):
    target = tmp_path / "b.jsonl"
    done = run("data", "convert", SAMPLE / "dev.jsonl", target)
    assert f"Wrote {target}: 56 rows." in done.stdout
    assert "--overwrite" in refused("data", "convert", SAMPLE / "dev.jsonl", target)
    run("data", "convert", SAMPLE / "dev.jsonl", target, "--overwrite")


@pytest.mark.parametrize("command", ["check", "split", "convert"])
def test_help_has_examples(command):
    assert f"adaptx data {command} " in run("data", command, "--help").stdout
