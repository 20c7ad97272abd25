"""A bundle checked where it is, and the figures of the check."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adaptx.errors import FolderError
from adaptx.runtime import Runtime
from adaptx.runtime.layout import PROBE, read_bundle, write_bundle
from adaptx.runtime.verify import (
    BOUNDS,
    PLAIN,
    compare_logits,
    compare_vectors,
    failures,
    read_probe,
    verify,
)


def verified(folder):
    with Runtime.open(folder, threads=2) as runtime:
        return verify(runtime)


@pytest.mark.parametrize("quantization", ["int8", "fp32"])
def test_a_bundle_passes_with_the_figures_of_its_export(bundles, quantization):
    report = verified(bundles[quantization])
    facts, _ = read_bundle(bundles[quantization])
    assert list(report) == [PLAIN, *facts.adapters]
    assert all(found["failed"] == [] for found in report.values())
    exported = facts.parity[quantization]
    for name, found in report.items():
        figures = {"max_difference", "max_relative_difference"}
        headed = name not in (PLAIN, "bare")
        figures |= {"agreement", "agreement_but_for_ties"} if headed else {"cosine"}
        assert found.keys() == figures | {"failed"}
        wanted = {figure: exported[name][figure] for figure in figures}
        assert {figure: found[figure] for figure in figures} == pytest.approx(wanted, abs=1e-6)
    largest = max(found["max_relative_difference"] for found in report.values())
    assert (largest < 1e-5) is (quantization == "fp32")


def test_the_report_of_the_export_has_all_four_ways(int8):
    facts, _ = read_bundle(int8)
    assert list(facts.parity) == ["texts", "merged", "fp32", "int8"]
    assert facts.parity["texts"] == 33
    assert facts.parity["merged"].keys() == set(facts.adapters) - {"probe"}
    assert max(facts.parity["merged"].values()) < 1e-4


def altered(bundle, tmp_path, change):
    """A copy with other probe outputs, and a bundle.json that fits them."""
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    tensors = load_file(folder / PROBE)
    change(tensors)
    save_file(tensors, folder / PROBE)
    facts, _ = read_bundle(folder)
    write_bundle(folder, facts)
    return folder


def other_label(tensors):
    tensors["output/wide"] = tensors["output/wide"][:, ::-1].copy()


def a_little_more(tensors):
    tensors["output/wide"] = tensors["output/wide"] * 1.001


def other_vectors(tensors):
    tensors["output/bare"] = tensors["output/bare"][::-1].copy()


def far_away(tensors):
    tensors["output/bare"] = tensors["output/bare"] + 1e9


@pytest.mark.parametrize(
    ("quantization", "change", "name", "said"),
    [
        ("int8", other_label, "wide", ["largest relative difference", "agreement but for ties"]),
        ("fp32", a_little_more, "wide", ["largest relative difference 0.001, bound 0.0001"]),
        ("int8", a_little_more, None, []),
        ("int8", other_vectors, "bare", ["mean cosine"]),
        ("fp32", far_away, "bare", ["largest relative difference"]),
    ],
)
def test_a_bundle_that_answers_otherwise_fails_by_name(
    bundles, tmp_path, quantization, change, name, said
):
    report = verified(altered(bundles[quantization], tmp_path, change))
    assert [n for n, found in report.items() if found["failed"]] == ([name] if name else [])
    for words in said:
        assert any(words in reason for reason in report[name]["failed"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("output/wide"), "lacks torch's answers of wide"),
        (lambda t: t.update({"output/wide": t["output/wide"][:4]}), "answers of wide"),
        (lambda t: t.update({"output/wide": t["output/wide"][:, :2].copy()}), "answers of wide"),
        (lambda t: t.pop("input_ids"), "no token ids"),
        (lambda t: t.update({"input_ids": t["input_ids"].astype("f4")}), "no token ids"),
    ],
)
def test_a_probe_that_isnt_whole_is_refused(int8, tmp_path, change, said):
    with pytest.raises(FolderError, match=said):
        verified(altered(int8, tmp_path, change))


def test_the_probe_has_rows_of_tokens_without_padding(int8, encoder):
    probe = read_probe(int8)
    assert len({len(ids) for ids in probe.ids}) > 5
    assert all(ids[0] == 0 and ids[-1] == 2 and encoder.text.pad_id not in ids for ids in probe.ids)
    assert json.dumps(probe.ids)  # plain numbers


def test_compared_logits_count_ties_apart():
    wanted = np.array([[1.0, 0.99], [2.0, 0.0]])
    found = np.array([[0.98, 1.0], [1.9, 0.0]])
    report = compare_logits(wanted, found, BOUNDS["int8"])
    assert report["max_difference"] == pytest.approx(0.1)
    assert report["max_relative_difference"] == pytest.approx(0.05)
    assert (report["agreement"], report["agreement_but_for_ties"]) == (0.5, 1.0)
    assert failures(report, BOUNDS["int8"], exact=False) == []
    exact = compare_logits(wanted, found, BOUNDS["fp32"])
    assert len(failures(exact, BOUNDS["fp32"], exact=True)) == 2


def test_compared_vectors_leave_their_mean_out():
    random = np.random.default_rng(0)
    wanted = random.standard_normal((8, 5)) + 100
    assert compare_vectors(wanted, wanted)["cosine"] == pytest.approx(1.0)
    assert compare_vectors(wanted, 200 - wanted)["cosine"] == pytest.approx(-1.0, abs=0.2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_isnt_finite_never_passes(value):
    wanted = np.array([[1.0, 2.0], [2.0, 0.5]])
    found = wanted.copy()
    found[0, 0] = value
    for quantization, exact in (("int8", False), ("fp32", True)):
        bounds = BOUNDS[quantization]
        assert failures(compare_logits(wanted, found, bounds), bounds, exact=exact)
        with np.errstate(invalid="ignore"):
            assert failures(compare_vectors(wanted, found), bounds, exact=exact)
