"""The benchmarks of scores, and the recipes beside them, on data small enough for a test."""

import gzip
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from adaptx.data.records import Example, Pair
from adaptx.tasks import TASKS
from benchmarks.bundle_tasks import joined, related, shares
from benchmarks.masakhaner import SUITE as MASAKHANER
from benchmarks.sib200 import SUITE as SIB200
from tests.conftest import ROOT


def recipe(name, *options):
    """What a recipe printed."""
    command = [sys.executable, str(ROOT / "recipes" / f"{name}.py"), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


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
    lines = [f"{i}\t{label}\t{text}" for i, (label, text) in enumerate(rows)]
    for lang in ("swh_Latn", "yor_Latn"):
        folder = tmp_path / "data" / "sib200" / lang
        folder.mkdir(parents=True)
        for split in ("train", "dev", "test"):
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
    assert "dev" not in lora  # it was trained on
    alone, said = benchmark("sib200", *options, "--methods", "probe", "--train-only")
    assert "seed 0 …" in said
    assert 0 <= alone["swh_Latn"]["probe"]["dev"] <= 1
    searched, said = benchmark("sib200", *options, "--search", "probe")
    assert searched == {"probe": [{"held_out": pytest.approx(1.0, abs=0.1)}]}  # each row is twice
    assert said.count("seed 0 …") == 4  # two halves of two languages


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
    output = ("--output", tmp_path / "out")
    said = recipe("ner_masakhaner", "--data", folder, "--epochs", 40, *output)
    score = float(re.search(r"^test F1 ([\d.]+)", said, re.M)[1])
    assert score > 0.5  # of the sentences that it was trained on
    assert len(re.findall(r"^  (?:PER|ORG|LOC|DATE) ", said, re.M)) == 4
    assert f"int8: dev F1 {score:.3f} ->" in said
    assert (tmp_path / "out" / "ner" / "adaptx.json").is_file()
    assert (tmp_path / "out" / "bundle" / "bundle.json").is_file()


@pytest.mark.slow
def test_the_afrisenti_benchmark_reads_tweets_and_prints_json(tmp_path):
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

    said = recipe("sentiment_afrisenti", "--data", folder, "--output", tmp_path / "out")
    assert "test weighted F1 1.000, accuracy 1.000" in said
    assert len(re.findall(r"^  (?:positive|neutral|negative) +F1 1.000, 4 tweets", said, re.M)) == 3
    assert "int8: dev accuracy 1.000 -> 1.000" in said
    assert re.search(r"^positive\t.*\tAsante sana rafiki", said, re.M)
    assert (tmp_path / "out" / "bundle" / "bundle.json").is_file()


@pytest.mark.slow
def test_three_tasks_share_an_adapter_in_the_benchmark_and_in_the_recipe(tmp_path):
    topics, names, feelings = (
        tmp_path / name for name in ("sib200/swh_Latn", "masakhaner1/swa", "afrisenti/swa")
    )
    for folder in (topics, names, feelings):
        folder.mkdir(parents=True)
    said = {
        "michezo": "Timu ya Simba imeshinda mechi ya jana",
        "afya": "Daktari alimpa mgonjwa dawa mpya",
    }
    for split in ("train", "dev", "test"):
        lines = [f"{i}\t{label}\t{text}" for i, (label, text) in enumerate([*said.items()] * 4)]
        (topics / f"{split}.tsv").write_text("\n".join(["index_id\tcategory\ttext", *lines]))
        tagged = (ROOT / "recipes" / "data" / "tasks" / "names.conll").read_text()
        (names / f"{split}.txt").write_text(tagged)
        with gzip.open(feelings / f"{split}.tsv.gz", "wt") as file:
            file.write("tweet\tlabel\n" + "Nimefurahi\tpositive\nNi mbaya\tnegative\n" * 4)
    options = ("--data", tmp_path, "--cache", tmp_path / "cache")
    found, said = benchmark("multitask", *options)
    again, said_again = benchmark("multitask", *options)
    assert found == again and ("seed 0 …" in said, "seed 0 …" in said_again) == (True, False)
    scores = [found[task]["shared"]["score"] for task in ("topics", "names", "sentiment")]
    assert found["mean"]["shared"]["score"] == pytest.approx(np.mean(scores), abs=1e-5)
    differences = found["differences"]
    each = [differences[task]["difference"] for task in ("topics", "names", "sentiment")]
    assert differences["mean"]["difference"] == pytest.approx(np.mean(each))
    assert differences["mean"]["low"] <= np.mean(each) <= differences["mean"]["high"]

    said = recipe("multitask", "--data", tmp_path, "--output", tmp_path / "out")
    assert len(re.findall(r"^(?:topics|names|sentiment): test .* [\d.]+$", said, re.M)) == 3
    assert len(re.findall(r"^int8: sw-\w+, dev [\d.]+ -> [\d.]+$", said, re.M)) == 3
    for task in ("topics", "names", "sentiment"):
        assert (tmp_path / "out" / f"sw-{task}" / "adaptx.json").is_file()
        assert f"sw-{task}: " in said


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
    said = recipe(
        "retrieval_tatoeba", "--rows", sib200 / "swh_Latn", "--english", sib200 / "eng_Latn",
        "--test", f"{tatoeba / 'test.swh'},{tatoeba / 'test.eng'}", "--output", tmp_path / "search",
    )  # fmt: skip
    assert "search: accuracy 1.000" in said
    assert f"{texts['swh'][0]}\n  {texts['eng'][0]}\n" in said


def fact_sheets(folder, languages):
    """XQuAD in small: the same 24 paragraphs and ids in each language, two questions about each."""
    sentences = {
        "en": ("{name} was born in {town}. ", "Who was born?", "Where was {name} born?"),
        "es": ("{name} nació en {town}. ", "¿Quién nació?", "¿Dónde nació {name}?"),
    }
    names = [f"{one} {two}" for one in ("Asha", "Juma", "Neema", "Baraka") for two in "ABCDEF"]
    towns = ("Arusha", "Mbeya", "Tanga", "Dodoma", "Lindi", "Moshi", "Iringa")
    for lang in languages:
        text, who, where = sentences.get(lang, sentences["en"])
        paragraphs = []
        for i, name in enumerate(names):
            town = towns[i % len(towns)]
            context = f"{i}. " + text.format(name=name, town=town)
            asked = ((who, name), (where.format(name=name), town))
            qas = [
                {
                    "id": f"p{i}q{j}",
                    "question": question,
                    "answers": [{"text": answer, "answer_start": context.index(answer)}],
                }
                for j, (question, answer) in enumerate(asked)
            ]
            paragraphs.append({"context": context, "qas": qas})
        (folder / lang).mkdir(parents=True)
        value = {"data": [{"title": "born", "paragraphs": paragraphs}]}
        with gzip.open(folder / lang / "test.json.gz", "wt") as file:
            json.dump(value, file)


@pytest.mark.slow
def test_the_qa_benchmark_trains_once_on_english_and_tests_every_language(tmp_path):
    fact_sheets(tmp_path / "xquad", ("en", "es", "de", "hi", "ru"))
    options = ("--seeds", 1, "--data", tmp_path, "--cache", tmp_path / "cache")
    found, said = benchmark("qa", *options, "--langs", "es,en", "--methods", "lora,probe")
    again, said_again = benchmark("qa", *options, "--methods", "lora,probe")
    assert (said.count("seed 0 …"), said_again.count("seed 0 …")) == (2, 0)  # a method each
    assert list(found) == ["es", "en", "mean", "differences"]
    assert list(again) == ["en", "es", "de", "hi", "ru", "mean", "differences"]
    for lang in ("en", "es"):
        assert found[lang] == again[lang]
        assert {"f1", "exact_match", "dev", "epoch", "seconds"} <= found[lang]["lora"].keys()
    assert again["de"] == again["en"] != again["es"]  # the same texts, and others
    english, spanish = (found[lang]["lora"]["f1"] for lang in ("en", "es"))
    assert found["mean"]["lora"]["f1"] == pytest.approx((english + spanish) / 2, abs=1e-5)
    tested = found["differences"]["lora - probe"]["rows"]
    assert again["differences"]["lora - probe"]["rows"] == tested / 2 * 5
    score, _ = benchmark("qa", *options, "--search", "probe")
    assert [one["lr"] for one in score["probe"]] == [1e-2, 1e-3]


@pytest.mark.slow
def test_the_recipe_for_answers_scores_each_language_exports_and_answers(tmp_path):
    fact_sheets(tmp_path / "xquad", ("en", "es"))
    said = recipe(
        "qa_xquad", "--data", tmp_path / "xquad", "--languages", "es", "--epochs", 10,
        "--output", tmp_path / "out",
    )  # fmt: skip
    scores = dict(re.findall(r"^(\w\w): test F1 ([\d.]+), exact match", said, re.M))
    assert list(scores) == ["en", "es"]
    assert float(scores["en"]) > 0.5  # half of the questions ask alike about other people
    assert re.search(r"^int8: dev F1 [\d.]+ -> [\d.]+$", said, re.M)
    assert "When was the bridge opened?\t" in said
    assert (tmp_path / "out" / "answers" / "adaptx.json").is_file()
    assert (tmp_path / "out" / "bundle" / "bundle.json").is_file()


def runs_of(seeds, rows, counts):
    """{language: {method: runs}} with random hits out of counts, as a benchmark's cache has it."""
    generator = np.random.default_rng(0)
    return {
        lang: {
            method: [
                {"rows": [generator.integers(0, 5, rows[lang]).tolist(), counts[lang].tolist()]}
                for _ in range(seeds[lang][method])
            ]
            for method in seeds[lang]
        }
        for lang in seeds
    }


def test_a_difference_is_of_scores_averaged_over_the_seeds_that_each_method_has():
    seeds = {"sw": {"lora": 3, "full": 1}, "yo": {"lora": 2, "full": 1}}
    rows = {"sw": 40, "yo": 25}
    generator = np.random.default_rng(1)
    counts = {lang: generator.integers(5, 9, n) for lang, n in rows.items()}
    runs = runs_of(seeds, rows, counts)

    def score(method, swahili, yoruba):
        above = [
            sum(runs[lang][method][i]["rows"][0]) for lang, i in (("sw", swahili), ("yo", yoruba))
        ]
        return sum(above) / sum(map(sum, counts.values()))

    of_lora = np.mean([score("lora", i, j) for i in range(3) for j in range(2)])
    found = MASAKHANER.less(runs, "lora", "full")
    assert found["difference"] == pytest.approx(of_lora - score("full", 0, 0))
    assert found["rows"] == 65
    assert found["low"] < found["difference"] < found["high"]
    one = {lang: {m: its[:1] for m, its in by_method.items()} for lang, by_method in runs.items()}
    wider = MASAKHANER.less(one, "lora", "full")  # more seeds, less noise
    assert found["high"] - found["low"] < wider["high"] - wider["low"]


def test_a_difference_of_accuracies_is_too():
    generator = np.random.default_rng(2)
    gold = {lang: generator.integers(0, 3, 30) for lang in ("sw", "yo")}
    answers = {
        lang: {m: generator.integers(0, 3, (n, 30)) for m, n in (("lora", 2), ("probe", 1))}
        for lang in gold
    }
    runs = {
        lang: {
            m: [{"rows": [gold[lang].tolist(), said.tolist()]} for said in said_by_seed]
            for m, said_by_seed in by_method.items()
        }
        for lang, by_method in answers.items()
    }
    right = {
        m: np.mean([(answers[lang][m] == gold[lang]).mean() for lang in gold])
        for m in ("lora", "probe")
    }
    found = SIB200.less(runs, "lora", "probe")
    assert found["difference"] == pytest.approx(right["lora"] - right["probe"])


def test_a_language_without_files_is_named_before_any_training(tmp_path):
    command = [sys.executable, "-m", "benchmarks.qa", "--data", tmp_path, "--langs", "sw"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert "xquad/en/test.json.gz" in done.stderr
    assert "no such file" in done.stderr


def test_the_data_made_for_three_tasks_says_what_is_in_it():
    rows = [Example(f"({i})", f"topic {i * i % 3}") for i in range(12)]
    topic = {row.text: row.label for row in rows}
    for row in joined(rows):
        assert set(row.names) == {topic[text] for text in row.text.split()}
    found = related(rows)
    assert {pair.label for pair in found} == {"same", "another"}
    for pair in found:
        assert (topic[pair.text] == topic[pair.other]) is (pair.label == "same")
        assert pair.text != pair.other
    pairs = [Pair(f"sw{i}", f"en{i}") for i in range(12)]
    told = shares(pairs)
    assert {pair.label for pair in told} == {str(n / 3) for n in range(4)}
    for pair in told:
        own, english = ({text[2:] for text in side.split()} for side in (pair.text, pair.other))
        assert len(own) == len(english) == 3
        assert float(pair.label) == len(own & english) / 3


@pytest.mark.slow
def test_the_benchmark_of_a_bundle_reports_every_task(tmp_path):
    topics = ("afya", "michezo", "siasa")
    for lang in ("swh_Latn", "eng_Latn"):
        (tmp_path / "sib200" / lang).mkdir(parents=True)
        for split in ("train", "dev"):
            lines = [f"{i}\t{topics[i % 3]}\t{lang} {topics[i % 3]} {i}." for i in range(12)]
            (tmp_path / "sib200" / lang / f"{split}.tsv").write_text(
                "\n".join(["index_id\tcategory\ttext", *lines]) + "\n"
            )
    (tmp_path / "tatoeba" / "swh").mkdir(parents=True)
    for lang in ("swh", "eng"):
        lines = "".join(f"{lang} {topic}\n" for topic in topics)
        (tmp_path / "tatoeba" / "swh" / f"test.{lang}").write_text(lines)
    (tmp_path / "masakhaner1" / "swa").mkdir(parents=True)
    for split in ("train", "dev"):
        (tmp_path / "masakhaner1" / "swa" / f"{split}.txt").write_text(
            (ROOT / "recipes" / "data" / "tasks" / "names.conll").read_text()
        )
    fact_sheets(tmp_path / "xquad", ("en",))
    found, said = benchmark("bundle_tasks", "--data", tmp_path, "--cache", tmp_path / "cache")
    tasks = {kind for kind, task in TASKS.items() if task.answers}
    assert said.count("training ") == len(found) == len(tasks)
    assert {one["task"] for one in found.values()} == tasks
    for one in found.values():
        assert 0 < one["fp32"] < 1e-4
        assert one["drop"] == pytest.approx(one["torch"] - one["bundle"])
        assert one["within"] == (one["low"] <= 0.005)
        assert one["rows"] > 0
    assert len(list((tmp_path / "cache").glob("*/adapter_model.safetensors"))) == len(tasks)


@pytest.mark.slow
def test_products_are_exact_on_this_processor():
    found, said = benchmark("overflow")
    shapes = [value for name, value in found.items() if name != "overflows"]
    assert len(shapes) == 6 and "1536 x 1536 x 384" in said
    for by_way in shapes:
        assert by_way["exact"]["error"] < 1e-6
        assert (by_way["as it is"]["error"] < 1e-6) or found["overflows"]
        assert by_way["fp32"]["ms"] > 0
