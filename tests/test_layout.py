import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from adaptx.data.read import find_split, read_examples

ROOT = Path(__file__).parents[1]
DATA = ROOT / "recipes" / "data"
TOPICS = {
    "entertainment",
    "geography",
    "health",
    "politics",
    "science/technology",
    "sports",
    "travel",
}
LAYERS = {
    "errors": 0,
    "storage": 1,
    "hub": 1,
    "machine": 1,
    "data": 2,
    "tasks": 3,
    "encoder": 4,
    "adapters": 5,
    "evaluation": 6,
    "explaining": 7,
    "training": 8,
}
ALLOWED = {
    part: {other for other in LAYERS if LAYERS[other] <= layer} for part, layer in LAYERS.items()
}
ALLOWED["runtime"] = {"errors", "storage", "hub", "machine", "data", "tasks", "adapters", "runtime"}
ALLOWED["onnx"] = {*LAYERS, "onnx", "runtime"} - {"training"}
ALLOWED["cli"] = {*LAYERS, "onnx", "runtime", "cli", "adaptx"}
ALLOWED["__main__"] = {"cli"}
TORCH_FREE = [
    "adaptx",
    "adaptx.cli.main",
    "adaptx.data.read",
    "adaptx.data.large",
    "adaptx.data.check",
    "adaptx.data.swaps",
    "adaptx.data.encode",
    "adaptx.tasks",
    "adaptx.storage",
    "adaptx.hub",
    "adaptx.adapters.folder",
    "adaptx.adapters.finding",
    "adaptx.adapters.inspect",
    "adaptx.adapters.rename",
    "adaptx.evaluation.audit",
    "adaptx.evaluation.evaluate",
    "adaptx.evaluation.tables",
    "adaptx.evaluation.write",
    "adaptx.explaining.explain",
    "adaptx.explaining.page",
    "adaptx.runtime.runtime",
    "adaptx.runtime.verify",
    "adaptx.training.runs",
    "adaptx.training.curves",
]
HEAVY = ["torch", "transformers", "peft", "accelerate", "onnxruntime", "datasets", "pyarrow"]


@pytest.mark.parametrize("module", TORCH_FREE)
def test_importing_what_needs_no_torch_loads_none_of_it(module):
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def modules():
    return sorted((ROOT / "adaptx").rglob("*.py"))


def package(path):
    return ".".join(path.relative_to(ROOT).parent.parts)


def part(module):
    names = module.split(".")
    return names[1] if len(names) > 1 else "adaptx"


def own_imports(source, package):
    """The modules of adaptx that a source imports anywhere but for type checking."""
    waiting, found = [ast.parse(source)], set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            names = [alias.name for alias in node.names]
            from_root = base == "adaptx"
            found |= {f"adaptx.{name}" if from_root and is_part(name) else base for name in names}
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)
    return {name for name in found if name.split(".")[0] == "adaptx"}


def is_part(name):
    return (ROOT / "adaptx" / name).is_dir() or (ROOT / "adaptx" / f"{name}.py").is_file()


def test_the_reader_of_imports_sees_all_but_those_for_type_checking():
    source = """
import adaptx as ax, json
import adaptx.data.read
from adaptx import __version__, storage
from . import folder
from ..encoder.encoder import Encoder
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from adaptx.training.train import train
else:
    from adaptx.onnx import merged
def late():
    try:
        from adaptx.cli import main
    except ImportError:
        import adaptx.errors
"""
    assert own_imports(source, "adaptx.adapters") == {
        "adaptx",
        "adaptx.data.read",
        "adaptx.storage",
        "adaptx.adapters",
        "adaptx.encoder.encoder",
        "adaptx.onnx",
        "adaptx.cli",
        "adaptx.errors",
    }


def test_imports_point_one_way():
    arrows = {
        (str(path.relative_to(ROOT)), part(f"{package(path)}.{path.stem}"), part(imported))
        for path in modules()
        if path != ROOT / "adaptx" / "__init__.py"
        for imported in own_imports(path.read_text(encoding="utf-8"), package(path))
    }
    assert {("adapters", "encoder"), ("training", "adapters")} <= {arrow[1:] for arrow in arrows}
    wrong = [(file, to) for file, of, to in sorted(arrows) if to not in ALLOWED[of]]
    assert wrong == []


def test_every_part_of_the_package_has_its_place_among_the_arrows():
    parts = {part(f"{package(path)}.{path.stem}") for path in modules()}
    assert parts == {*ALLOWED, "__init__"}


def sample():
    return {
        (path.parent.name, path.stem): read_examples(path)
        for path in sorted(DATA.rglob("*"))
        if path.is_file() and path.parent.name != "tasks"  # those are other tasks' samples
    }


def test_the_sample_set_has_its_texts_for_each_topic():
    sizes = {
        ("swh", "train"): 24,
        ("swh", "dev"): 8,
        ("swh", "test"): 8,
        ("eng", "test"): 10,
        ("fra", "test"): 10,
    }
    counts = {place: Counter(row.label for row in rows) for place, rows in sample().items()}
    assert counts == {place: dict.fromkeys(TOPICS, size) for place, size in sizes.items()}
    assert sum(sum(c.values()) for (folder, _), c in counts.items() if folder == "swh") == 280


def test_the_sample_set_is_found_by_split():
    for split in ("train", "dev", "test"):
        assert find_split(DATA / "swh", split) == DATA / "swh" / f"{split}.jsonl"


def test_no_text_of_the_sample_set_stands_in_it_twice():
    counts = Counter(row.text.casefold() for rows in sample().values() for row in rows)
    assert [text for text, count in counts.items() if count > 1] == []


def runs(text, length):
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def test_no_two_texts_of_the_sample_set_share_four_words_in_a_row():
    texts = [row.text for rows in sample().values() for row in rows]
    counts = Counter(run for text in texts for run in runs(text, 4))
    assert len(counts) > len(texts)
    assert [run for run, count in counts.items() if count > 1] == []


def tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_no_tracked_file_names_a_folder_of_a_developers_machine():
    folders = "|".join(["wo" + "rk", "ro" + "ot", "ho" + "me", "Us" + "ers"])
    needle = re.compile(rf"(?<![\w.~])/(?:{folders})/".encode())
    files = {path: path.read_bytes() for path in tracked()}
    assert ROOT / "adaptx" / "errors.py" in files
    assert needle.search(b"cd /wo" + b"rk/main")
    found = [
        f"{path.relative_to(ROOT)}: {match.group().decode()}"
        for path, content in files.items()
        if b"\0" not in content
        for match in needle.finditer(content)
    ]
    assert found == []
