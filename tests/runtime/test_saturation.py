"""How much int8 cuts off of an adapter that was added later."""

import shutil
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import adaptx as ax
from adaptx.errors import FolderError
from adaptx.runtime import Runtime
from adaptx.runtime.layout import CHECK, IDS, INPUT_IDS, MASK, SATURATION, WEIGHTS
from adaptx.runtime.verify import read_probe
from tests.runtime.conftest import TOPICS, acting


def scaled(encoder, factor, folder):
    adapter = acting(encoder, f"times-{factor}", 9, 8, ax.tasks.Classification(TOPICS))
    for part in adapter.sites.values():
        part.b.data *= factor
    return adapter.save(folder / adapter.name)


def test_an_ordinary_adapter_is_taken_silently(runtime, encoder, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        info = runtime.add(scaled(encoder, 1, tmp_path))
    assert 0 <= info.saturation <= runtime._check.bound
    assert {i.name: i.saturation for i in runtime.adapters()}["times-1"] == info.saturation


def test_one_beyond_the_calibrated_range_is_warned_of(runtime, encoder, tmp_path):
    with pytest.warns(UserWarning, match=r"'times-50' drives \d+\.\d% .*Export the bundle again"):
        info = runtime.add(scaled(encoder, 50, tmp_path))
    assert info.saturation > runtime._check.bound
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert runtime.check("times-50", warn=False) == info.saturation
        runtime.remove("times-50")
        info = runtime.add(tmp_path / "times-50", check=False)
    assert info.saturation is None and runtime.predict(["OK"], "times-50")[0].prediction


def test_one_of_a_library_is_measured_when_it_is_first_read(int8, encoder, tmp_path):
    for factor in (1, 50):
        scaled(encoder, factor, tmp_path / "library")
    with Runtime.open(int8, threads=1, library=tmp_path / "library", max_resident=1) as runtime:
        with pytest.warns(UserWarning, match="'times-50' drives"):
            runtime.embed(["OK"], "times-50")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            runtime.embed(["OK"], "times-1")
            found = {info.name: info.saturation for info in runtime.adapters()}  # it was let go
            runtime.embed(["OK"], "times-50")
        assert found["times-1"] <= runtime._check.bound < found["times-50"]
        assert found["probe"] is None  # the bundle's own were measured at its export


def test_one_whose_states_are_no_numbers_is_refused(encoder, adapters, tmp_path):
    ax.export(encoder, [adapters["wide"], adapters["bare"]], tmp_path / "bundle", bank="fp32")
    with Runtime.open(tmp_path / "bundle", threads=1) as runtime:
        before = runtime.adapters()
        with pytest.raises(FolderError, match=r"'times-1e\+30' makes .* infinite"):
            runtime.add(scaled(encoder, 1e30, tmp_path))
        assert runtime.adapters() == before
        with pytest.warns(UserWarning, match=r"'times-1000000' drives \d+\.\d%"):
            runtime.add(scaled(encoder, 10**6, tmp_path))


def test_the_bundles_own_are_within_its_bound(runtime):
    found = [runtime.check(name) for name in runtime.facts.adapters]
    assert max(found) == pytest.approx(runtime.facts.saturation, abs=1e-6)
    assert max(found) < runtime._check.bound


def test_fp32_saturates_nowhere(fp32, encoder, tmp_path):
    with Runtime.open(fp32, threads=1) as runtime, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert runtime.add(scaled(encoder, 50, tmp_path)).saturation is None


def test_the_share_is_what_lies_beyond_u8(runtime, encoder, tmp_path):
    """Every quantized input of check.onnx, read out and counted by hand."""
    with pytest.warns(UserWarning, match="times-50"):
        runtime.add(scaled(encoder, 50, tmp_path))
    model = onnx.load(runtime.folder / CHECK, load_external_data=False)
    constants = {t.name: t for t in model.graph.initializer if not t.external_data}
    inputs = {
        node.input[0]: [numpy_helper.to_array(constants[name]) for name in node.input[1:]]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }
    assert len(inputs) == 8  # four of each layer
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inputs)
    shutil.copy(runtime.folder / WEIGHTS, tmp_path)
    (tmp_path / CHECK).write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(tmp_path / CHECK, providers=["CPUExecutionProvider"])
    place = runtime.pool.resident["times-50"].place
    ids = np.array([max(read_probe(runtime.folder).ids, key=len)], np.int64)
    feeds = {INPUT_IDS: ids, MASK: np.ones_like(ids), IDS: np.array([[place.slot]])}
    share, *found = session.run([SATURATION, *inputs], {**feeds, **place.chunk.arrays})
    by_hand = []
    for values, (scale, zero) in zip(found, inputs.values(), strict=True):
        steps = np.rint(values / scale) + int(zero)
        by_hand.append(((steps < 0) | (steps > 255)).mean())
    assert share == pytest.approx(max(by_hand), abs=1e-6)
    assert share > 0.05 and min(by_hand) < share
