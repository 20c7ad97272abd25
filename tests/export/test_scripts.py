"""export/: the scripts as a user runs them, and a real server on loopback."""

import json
import runpy
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
from peft import LoraConfig

import adaptx as ax
from tests.conftest import ROOT

pytestmark = pytest.mark.optimum
TEXTS = ["Timu yetu imeshinda", "Mgonjwa alipewa dawa", "今天天气很好"]


@pytest.fixture(scope="module")
def exported(small, tmp_path_factory):
    """An adapter, and the folder that the script made of it."""
    folder = tmp_path_factory.mktemp("export")
    config = LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear")
    task = ax.tasks.Classification(("afya", "michezo", "siasa"))
    adapter = ax.Adapter.new(small, task, config, name="sw")
    adapter.save(folder / "sw")
    command = [sys.executable, str(ROOT / "export" / "merged_int8.py")]
    command += [str(folder / "sw"), str(folder / "model"), "--fp32", "--encoder"]
    done = subprocess.run(
        [*command, str(small.folder)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["ms"].keys() == {"1x16", "8x32", "32x48"}
    assert last["size_mb"] > 30
    return adapter, folder / "model"


@pytest.fixture(scope="module")
def server(exported):
    with serving(exported[1]) as url:
        yield url


@contextmanager
def serving(folder):
    """The address of the server of a folder, which runs meanwhile."""
    command = [sys.executable, str(ROOT / "export" / "serve_merged.py"), str(folder)]
    process = subprocess.Popen(
        [*command, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(timeout=30)


def post(url, body):
    request = urllib.request.Request(url, data=body)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_server_answers_as_torch(small, exported, server):
    status, answers = post(server, json.dumps({"texts": TEXTS}).encode())
    assert status == 200
    for found, wanted in zip(answers, small.predict(TEXTS, exported[0]), strict=True):
        assert found["label"] == wanted.label
        assert found["score"] == pytest.approx(wanted.score, abs=2e-4)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"texts": "one"}', b'{"texts": [1]}', b'{"texts": ["\\ud83d"]}', b"\xff",
     b'{"texts": NaN}', b"[" * 100_000],
)  # fmt: skip
def test_a_bad_request_is_told_so_and_the_server_goes_on(server, body):
    status, answer = post(server, body)
    assert status == 400
    assert "texts" in answer["error"]
    assert post(server, b'{"texts": []}') == (200, [])


def test_too_many_texts_are_refused(server):
    status, answer = post(server, json.dumps({"texts": [""] * 257}).encode())
    assert (status, answer) == (413, {"error": "at most 256 texts"})


def test_a_body_over_a_megabyte_is_refused(server):
    text = json.dumps({"texts": ["a" * (1 << 20)]}).encode()
    try:
        status, _ = post(server, text)
    except urllib.error.URLError:  # the server closed before the whole body was sent
        status = 413
    assert status == 413
    assert post(server, b'{"texts": []}') == (200, [])


def test_a_model_that_fails_is_a_status_and_the_server_goes_on(exported, tmp_path):
    folder = shutil.copytree(exported[1], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {}}))
    with serving(folder) as url:
        for _ in range(2):
            status, answer = post(url, b'{"texts": ["a"]}')
            assert status == 500 and "log" in answer["error"]
        assert post(url, b'{"texts": []}') == (200, [])


@pytest.mark.parametrize("kind", ["multi-label", "pairs", "token-classification"])
def test_a_model_of_another_task_isnt_served(exported, tmp_path, kind):
    (tmp_path / "adaptx.json").write_text(json.dumps({"task": {"kind": kind}}))
    command = [sys.executable, str(ROOT / "export" / "serve_merged.py"), str(tmp_path)]
    done = subprocess.run([*command, "--port", "0"], capture_output=True, text=True, timeout=60)
    said = f"{tmp_path} is of the task {kind!r}; this server knows classification.\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


ROWS = {
    "multi-label": {"text": "Timu yetu imeshinda", "labels": ["michezo"]},
    "question-answering": {
        "id": "1", "question": "Wapi?", "context": "Leo ni Zanzibar", "answers":
        {"text": ["Zanzibar"], "answer_start": [7]},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (ax.tasks.MultiLabel(("afya", "michezo")), "micro F1 on dev: torch "),
        (ax.tasks.QuestionAnswering(), "\nF1 on dev: torch "),
        (ax.tasks.Similarity(), None),
    ],
)
def test_the_script_says_how_other_tasks_agree(small, tmp_path, monkeypatch, capsys, task, said):
    config = LoraConfig(r=4, init_lora_weights=False, target_modules=["query"])
    ax.Adapter.new(small, task, config, name="one").save(tmp_path / "one")
    asked = [str(tmp_path / "one"), str(tmp_path / "model"), "--fp32", "--encoder"]
    asked += [str(small.folder)]
    if said is not None:
        (tmp_path / "dev.jsonl").write_text(json.dumps(ROWS[task.kind]) + "\n")
        asked += ["--dev", str(tmp_path / "dev.jsonl")]
    monkeypatch.setattr(sys, "argv", ["merged_int8.py", *asked])
    runpy.run_path(str(ROOT / "export" / "merged_int8.py"), run_name="imported")["main"]()
    found = capsys.readouterr().out
    assert "of the largest output from torch on" in found
    assert said is None or said in found
    assert json.loads(found.splitlines()[-1])["ms"].keys() == {"1x16", "8x32", "32x48"}


def test_the_server_needs_neither_torch_nor_adaptx():
    code = (
        "import runpy, sys\n"
        f"runpy.run_path({str(ROOT / 'export' / 'serve_merged.py')!r}, run_name='imported')\n"
        "found = {'torch', 'transformers', 'adaptx', 'optimum'} & set(sys.modules)\n"
        "sys.exit(f'loaded {found}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_wrong_folder_is_refused_without_a_traceback(tmp_path):
    command = [sys.executable, str(ROOT / "export" / "merged_int8.py")]
    done = subprocess.run(
        [*command, str(tmp_path / "nothing"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: There is no adapter folder")
