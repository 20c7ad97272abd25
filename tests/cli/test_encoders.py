"""`adaptx encoders`, on small encoders, the bundled one, and a Hub cache laid out by hand."""

import json
import re
import shutil

import pytest

import adaptx as ax
from adaptx.data.read import read_examples
from adaptx.errors import AdaptxError, DataError
from adaptx.training.choose import read_sample
from tests.cli.test_cli import refused, run
from tests.cli.test_commands import inside
from tests.conftest import BUNDLED, ROOT, SAMPLE
from tests.test_readme import blocks

ENG = SAMPLE.parent / "eng" / "test.jsonl"


@pytest.fixture(scope="module")
def compared(small_folders):
    """Two encoders on a labelled folder and on a file of texts."""
    done = run(
        "encoders", "compare", small_folders["bert"], small_folders["xlm-roberta"],
        "--data", f"sw={SAMPLE}", "--data", f"en={ENG}", "--json",
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_each_encoder_is_a_line_as_it_comes(compared, small_folders):
    found, said = compared
    assert [one["family"] for one in found] == ["bert", "xlm-roberta"]
    for one, family in zip(found, ("bert", "xlm-roberta"), strict=True):
        encoder = ax.Encoder.from_pretrained(small_folders[family])
        assert one["weights"] == pytest.approx(encoder.parameters / 1e6)
        assert one["vocabulary"] == pytest.approx(encoder.config.vocab_size * 32 / 1e6)
        assert one["longest"] == encoder.text.max_length
        assert one["threads"] >= 1
        assert set(one["languages"]) == {"sw", "en"}
        for language, figures in one["languages"].items():
            assert figures["alone"] > 0 < figures["batched"]
            assert re.search(rf"{family}, {language}: tokens/word \d\.\d\d; .*ms alone", said)


def test_the_tokens_are_those_of_every_text(compared, small):
    found, _ = compared
    texts = [row.text for path in SAMPLE.iterdir() for row in read_examples(path)]
    counts = [len(ids) - 2 for ids in small.text.ids(texts)]  # less <s> and </s>
    tokens = found[0]["languages"]["sw"]["tokens"]
    assert tokens["texts"] == len(texts) == 280
    assert tokens["tokens_per_text"] == pytest.approx(sum(counts) / 280)
    words = sum(len(text.split()) for text in texts)
    assert tokens["tokens_per_word"] == pytest.approx(sum(counts) / words)
    assert tokens["unknown"] == 0


def test_a_folder_gives_the_probes_score_and_a_file_none(compared, small):
    found, _ = compared
    assert found[0]["languages"]["en"]["probe"] is None
    probe = ax.train(
        small, ax.tasks.Classification(), None, name="p",
        train=SAMPLE / "train.jsonl", dev=SAMPLE / "dev.jsonl",
    )  # fmt: skip
    rows = read_examples(SAMPLE / "test.jsonl")
    answers = small.predict([row.text for row in rows], probe)
    right = sum(a.label == row.label for a, row in zip(answers, rows, strict=True))
    score = found[0]["languages"]["sw"]["probe"]
    assert score["rows"] == len(rows)
    assert score["accuracy"] == pytest.approx(right / len(rows))


def test_a_dry_run_opens_nothing(tmp_path):
    done = run(
        "encoders", "compare", "nobody/nothing", "--data", f"sw={SAMPLE}", "--data", f"en={ENG}",
        "--dry-run", HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert "sw (280 texts, a probe), en (70 texts, no probe)" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([f"--data={SAMPLE}"], "LANG=FILE"),
        (["--data", "=x.tsv"], "LANG=FILE"),
        (["--data", f"sw={SAMPLE}", "--data", f"sw={ENG}"], "given twice"),
        (["--data", "sw=absent.tsv"], "absent.tsv: there is no such file"),
        (["--data", f"sw={ENG}", BUNDLED], "An encoder was given twice"),
    ],
)
def test_bad_input_is_refused_before_any_encoder_is_opened(arguments, said):
    with pytest.raises(AdaptxError, match=said):
        inside("encoders", "compare", BUNDLED, *arguments)


def test_an_encoder_that_isnt_there_is_named_before_another_is_measured(tmp_path):
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    said = refused(
        "encoders", "compare", BUNDLED, "nobody/nothing", "--data", f"sw={ENG}", **offline
    )
    assert "nobody/nothing" in said


def test_labels_of_test_that_train_lacks_are_refused(tmp_path):
    (tmp_path / "train.tsv").write_text("text\tlabel\na b\tx\nc d\ty\n")
    (tmp_path / "test.tsv").write_text("text\tlabel\na b\tx\nc d\tz\n")
    with pytest.raises(DataError, match=r"test\.tsv, line 3: .*'z'"):
        inside("encoders", "compare", BUNDLED, "--data", f"sw={tmp_path}")


def test_a_folder_without_train_is_texts_alone(tmp_path):
    (tmp_path / "test.tsv").write_text("text\na b\nc d\n")
    sample = read_sample("xx", tmp_path)
    assert sample.texts == ("a b", "c d")
    assert sample.train == ()
    (tmp_path / "test.tsv").rename(tmp_path / "notes.txt")
    with pytest.raises(DataError, match=r"has no test file .*notes\.txt"):
        read_sample("xx", tmp_path)


def hub_model(home, name, family, weights):
    """A model as huggingface_hub keeps one: refs, and a snapshot of a commit."""
    folder = home / "hub" / ("models--" + name.replace("/", "--"))
    commit = "a" * 40
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    (snapshot / "config.json").write_text(json.dumps({"model_type": family}))
    (snapshot / weights).write_bytes(b"0" * 1000)


def test_the_list_has_what_the_hubs_cache_holds(tmp_path):
    hub_model(tmp_path, "some/xlmr", "xlm-roberta", "model.safetensors")
    hub_model(tmp_path, "some/old", "bert", "pytorch_model.bin")
    hub_model(tmp_path, "some/decoder", "gpt2", "model.safetensors")
    done = run("encoders", "list", "--json", HF_HOME=str(tmp_path))
    found = {one["name"]: one for one in json.loads(done.stdout)["encoders"]}
    assert found[BUNDLED]["ready"]
    assert found["some/xlmr"]["ready"]
    assert found["some/xlmr"]["size"] > 1000
    assert "safetensors" in found["some/old"]["why"]
    assert "gpt2" in found["some/decoder"]["why"]
    shutil.rmtree(tmp_path / "hub")
    said = run("encoders", "list", HF_HOME=str(tmp_path)).stdout
    assert "xlm-roberta" in said.splitlines()[0]
    assert re.search(rf"^{BUNDLED} +bert +yes +\d+ MB$", said, re.M)


@pytest.mark.slow
def test_the_pages_commands_run():
    """Those of docs/choosing.md that need no download."""
    page = ROOT / "docs" / "choosing.md"
    lines = [line for block in blocks(page) for line in block.splitlines()]
    commands = [line.split()[1:] for line in lines if line.startswith("adaptx encoders")]
    offline = [words for words in commands if not any("/" in w and "=" not in w for w in words)]
    assert {words[1] for words in offline} == {"list", "compare"}
    said = [run(*words).stdout for words in offline]
    (row,) = re.findall(r"^sw +bundled:\S+ .*$", "".join(said), re.M)
    assert re.search(r"\d\.\d{3} \(56 rows\)$", row)
