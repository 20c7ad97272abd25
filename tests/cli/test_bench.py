"""`adaptx bench` on a small bundle: what it times, its table, its plot, and bad input."""

import builtins
import json

import pytest

import adaptx as ax
from adaptx.errors import FolderError, MissingExtra, OptionError, OutputExists
from adaptx.machine import cores
from adaptx.runtime.bench import thread_counts
from tests.cli.test_adapters import adaptx

QUICK = ["--threads", "1", "--rounds", "1"]
OURS = ["mixed adapters", "one adapter", "no adapter"]


def test_each_shape_and_number_of_threads_is_timed(bundle, capsys):
    shapes = ["--shapes", "1x8,3x5", "--rounds", "1"]
    assert adaptx("bench", bundle, "--threads", "1,2", *shapes, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cores"] == cores()
    places = [(t["threads"], t["rows"], t["tokens"], t["model"]) for t in found["timings"]]
    each = [(n, r, s, m) for n in (1, 2) for r, s in ((1, 8), (3, 5)) for m in OURS]
    assert places == each
    for t in found["timings"]:
        assert t["ms"] > 0
        assert t["rows_per_second"] == pytest.approx(1000 * t["rows"] / t["ms"])
        assert t["tokens_per_second"] == pytest.approx(t["tokens"] * t["rows_per_second"])


def test_threads_are_swept_up_to_the_cores(monkeypatch):
    for here, swept in ((1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])):
        monkeypatch.setattr("adaptx.runtime.bench.cores", lambda here=here: here)
        assert thread_counts() == swept


@pytest.mark.optimum
@pytest.mark.slow
def test_merged_models_are_timed_beside_it_and_a_plot_is_drawn(
    small, three, bundle, tmp_path, capsys
):
    model, png = tmp_path / "sw-merged", tmp_path / "bench.png"
    ax.export_merged(small, ax.Adapter.load(three["sw"], small), model)
    asked = ["bench", bundle, "--merged", model, "--shapes", "1x8", *QUICK, "--plot", png]
    assert adaptx(*asked) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("over merged")
    assert lines[-1].startswith("merged sw-merged")
    assert lines[-1].endswith("1.00")
    assert len(lines) == 5
    assert png.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(OutputExists):
        adaptx(*asked)
    with pytest.raises(OptionError, match="given twice"):
        adaptx("bench", bundle, "--merged", model, "--merged", model, *QUICK)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--threads", "0"], "--threads 0"),
        (["--threads", "1,x"], "--threads 1,x"),
        (["--shapes", "8"], "--shapes 8"),
        (["--shapes", "1x"], "rows x tokens"),
        (["--shapes", "1x65", *QUICK], "rows of 2 to 64 tokens"),
        (["--shapes", "1x1", *QUICK], "rows of 2 to 64 tokens"),
    ],
)
def test_a_bad_option_is_refused(bundle, options, said):
    with pytest.raises(OptionError, match=said):
        adaptx("bench", bundle, *options)


def test_a_folder_that_is_neither_is_refused(three, bundle, tmp_path):
    with pytest.raises(FolderError, match="no bundle"):
        adaptx("bench", tmp_path / "nothing", *QUICK)
    with pytest.raises(FolderError, match="no merged model"):
        adaptx("bench", bundle, "--merged", tmp_path / "nothing", *QUICK)
    with pytest.raises(FolderError, match="holds a 'adapter', not a 'merged'"):
        adaptx("bench", bundle, "--merged", three["sw"], *QUICK)


def test_a_plot_that_cant_be_drawn_is_refused_before_anything_is_timed(
    bundle, tmp_path, monkeypatch
):
    with pytest.raises(OptionError, match="no folder"):
        adaptx("bench", bundle, "--plot", tmp_path / "nowhere" / "x.png")
    real = builtins.__import__

    def without(name, *rest):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match="A plot needs the package 'matplotlib'"):
        adaptx("bench", bundle, "--plot", tmp_path / "x.png")
