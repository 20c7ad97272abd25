"""int8 with fixed scales: the formula, what is quantized, and what is left alone."""

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from adaptx import Encoder
from adaptx.onnx.build import build
from adaptx.onnx.graph import Graph
from adaptx.onnx.quantize import (
    calibrate,
    inputs_of_products,
    quantize,
    quantize_columns,
    search,
    with_half_banks,
    with_joined_products,
    with_saturation,
)
from adaptx.runtime.layout import IDS, INPUT_IDS, MASK, SATURATION
from adaptx.runtime.sessions import open_session
from tests.encoder.families import write_encoder

ROWS, WIDTH = 60, 48
X = "Identity_0"  # what products read


def random(seed=0):
    return np.random.default_rng(seed)


def outlying(rows=ROWS, seed=1):
    """Inputs as encoders have them: a few channels are many times the others."""
    x = random(seed).standard_normal((rows, WIDTH), np.float32)
    x[:, ::16] *= 40
    return x


def run(model, **feeds):
    return open_session(model.SerializeToString(), 2).run(None, feeds)


def begin(g):
    """The value X, which the graph makes of its input x."""
    return g.node("Identity", g.input("x", "float32", ["rows", WIDTH]))


def products(*, weights=2, bias=True, shared=False):
    """`weights` products of x, with a bias each; `shared`: one weight, which also reads 3 x."""
    g, drawn = Graph(), random(2)
    x = begin(g)
    names = [
        g.constant(drawn.standard_normal((WIDTH, 32), np.float32), f"w{i}") for i in range(weights)
    ]
    readers = [(x, name) for name in names]
    if shared:
        three = g.node("Mul", g.node("Sin", x), g.constant(np.float32(3)))
        readers = [(x, names[0]), (three, names[0])]
    for i, (value, name) in enumerate(readers):
        y = g.node("MatMul", value, name)
        if bias:
            y = g.node("Add", y, g.constant(drawn.standard_normal(32, np.float32), f"b{i}"))
        g.output(f"y{i}", y, "float32", ["rows", 32])
    return g.model()


def small(model, rows=None):
    x = outlying() if rows is None else rows
    return quantize(model, calibrate(model, [{"x": x}], len(x)))


def constants(model):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def operators(model):
    return Counter(node.op_type for node in model.graph.node)


def test_a_product_is_its_formula():
    """y = a c (q - z) (W s)_int8 + b, by hand from the constants of the graph."""
    model, _ = small(products(weights=1))
    c, x = constants(model), outlying(9, seed=5)
    q = np.clip(np.rint(x * c[f"{X}/smooth"] / c[f"{X}/scale"]) + c[f"{X}/zero"], 0, 255)
    assert c[f"{X}/zero"].dtype == np.uint8 and c["w0/s8"].dtype == np.int8
    by_hand = (q - c[f"{X}/zero"]) @ c["w0/s8"].astype(float) * c[f"{X}/scale"] * c[
        "w0/scales"
    ] + c["b0"]
    (found,) = run(model, x=x)
    np.testing.assert_allclose(found, by_hand, rtol=1e-5, atol=1e-3)
    (exact,) = run(products(weights=1), x=x)
    assert np.square(found - exact).mean() < 1e-3 * np.square(exact).mean()


def test_the_error_falls_with_smoothing():
    x, weight = outlying(), constants(products())["w0"]
    (seen,) = calibrate(products(weights=1), [{"x": x}], len(x)).values()
    scale = (x.max() - x.min()) / 255
    q = np.rint(x / scale) * scale
    s8, scales = quantize_columns(weight)
    plain = np.square(q @ (s8 * scales) - x @ weight).mean() / np.square(x @ weight).mean()
    assert search(seen, [weight]).error < plain / 3


def test_the_error_that_is_said_is_the_products_own():
    x = outlying()
    model, errors = small(products(weights=1, bias=False), x)
    (found,), (exact,) = run(model, x=x), run(products(weights=1, bias=False), x=x)
    error = np.square(found - exact).mean() / np.square(exact).mean()
    assert errors[X] == pytest.approx(error, rel=1e-5)  # fp32 products of two libraries


def test_an_input_of_several_products_is_quantized_once():
    model, errors = small(products(weights=3))
    assert operators(model) == {
        "Mul": 1, "QuantizeLinear": 1, "MatMulIntegerToFloat": 3, "Identity": 4,
    }  # fmt: skip
    assert errors.keys() == {X}
    exact = run(products(weights=3), x=outlying())
    for found, wanted in zip(run(model, x=outlying()), exact, strict=True):
        assert np.abs(found - wanted).max() < 0.03 * np.abs(wanted).max()


@pytest.mark.parametrize("rows", [1, 16])
def test_products_of_one_input_become_one_with_the_same_bits(rows):
    model, _ = small(products(weights=3))
    joined, x = with_joined_products(model), outlying(rows, seed=7)
    assert operators(joined)["MatMulIntegerToFloat"] == 1
    assert all(map(np.array_equal, run(joined, x=x), run(model, x=x)))


def test_products_of_different_inputs_stay_apart():
    model, _ = small(products(shared=True))
    assert operators(with_joined_products(model)) == operators(model)


def test_a_weight_of_two_inputs_is_smoothed_for_each():
    exact = run(products(weights=1, shared=True), x=outlying())
    model, errors = small(products(weights=1, shared=True))
    assert len(errors) == 2
    for found, wanted in zip(run(model, x=outlying()), exact, strict=True):
        assert np.abs(found - wanted).max() < 0.03 * np.abs(wanted).max()


def test_only_a_vector_of_the_outputs_is_folded_as_bias():
    def added(shape, twice=False):
        g = Graph()
        x = begin(g)
        weight = g.constant(random(2).standard_normal((WIDTH, 32), np.float32), "w0")
        y = g.node("MatMul", x, weight)
        z = g.node("Add", g.constant(np.ones(shape, np.float32), "b"), y)
        g.output("z", g.node("Mul", z, y) if twice else z, "float32", ["rows", 32])
        return g.model()

    x = outlying()
    for model, left in (
        (added([32]), 0),
        (added([1]), 1),
        (added([1, 32]), 1),
        (added([32], twice=True), 1),
    ):
        made, _ = small(model)
        assert operators(made)["Add"] == left
        (found,), (wanted,) = run(made, x=x), run(model, x=x)
        assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


def test_a_batch_of_rows_beyond_the_range_is_cut_off_and_counted():
    x = outlying()
    checked = with_saturation(small(products(weights=1), x)[0])
    assert checked.graph.output[-1].name == SATURATION
    c = constants(checked)
    for factor in (1, 1.5, 10):
        *_, share = run(checked, x=x * np.float32(factor))
        steps = np.rint(x * np.float32(factor) * c[f"{X}/smooth"] / c[f"{X}/scale"]) + int(
            c[f"{X}/zero"]
        )
        assert share == pytest.approx(((steps < 0) | (steps > 255)).mean(), abs=1e-6)
        assert bool(share) is (factor > 1)


def test_ranges_are_of_every_row_and_the_sample_of_some():
    x = [outlying(50, seed) for seed in range(40)]
    (seen,) = calibrate(products(weights=1), [{"x": rows} for rows in x], 2000).values()
    rows = np.concatenate(x)
    assert np.array_equal(seen.low_I, rows.min(0)) and np.array_equal(seen.high_I, rows.max(0))
    assert 500 < len(seen.rows_TI) < 1000


def test_narrow_products_and_those_of_two_inputs_stay():
    g = Graph()
    x = begin(g)
    narrow = g.node("MatMul", x, g.constant(np.ones((WIDTH, 8), np.float32), "narrow"))
    both = g.node("MatMul", narrow, g.input("y", "float32", [8, 64]))
    g.output("z", both, "float32", ["rows", 64])
    model = g.model()
    assert inputs_of_products(model) == {}
    same, errors = quantize(model, {})
    assert same == model and errors == {}


@pytest.mark.parametrize(("rows", "kept"), [(1500, False), (900, True)])
def test_a_large_table_is_quantized_by_rows(rows, kept):
    g = Graph()
    ids = g.input("ids", "int64", ["tokens"])
    table = random(3).standard_normal((rows, 16), np.float32) * np.logspace(-3, 3, rows)[:, None]
    words = g.constant(table.astype(np.float32), "words")
    g.output("y", g.node("Gather", words, ids), "float32", ["tokens", 16])
    model, _ = quantize(g.model(), {})
    assert ("words" in constants(model)) is kept
    chosen = np.array([0, 5, rows - 1, 700])
    (found,) = run(model, ids=chosen)
    largest = np.abs(table[chosen]).max(1, keepdims=True)  # of each row: its own scale
    assert (np.abs(found - table[chosen]) <= largest / 254 * 1.001).all()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = write_encoder(tmp_path_factory.mktemp("encoder") / "xlm-roberta", "xlm-roberta")
    return Encoder.from_pretrained(folder)


@pytest.fixture(scope="module")
def built(encoder):
    """The graph of an encoder, its banks, what it is fed, and its int8."""
    model, banks = build(encoder, list(encoder.sites))
    ids = random().integers(4, 15_000, (6, 20))
    feeds = {INPUT_IDS: ids, MASK: np.ones_like(ids), IDS: np.array([[0], [1], [2], [1], [0], [2]])}
    for spec in banks:
        drawn = 0.1 * random().standard_normal((3, 4 * len(spec.parts), spec.width), np.float32)
        drawn[0] = 0
        feeds[spec.name] = drawn
    return model, banks, feeds, quantize(model, calibrate(model, [feeds], ids.size))[0]


def test_in_an_encoder_nothing_but_its_products_and_words_is_touched(built, encoder):
    model, banks, _, made = built
    before, after = operators(model), operators(made)
    assert after["MatMulIntegerToFloat"] == len(encoder.sites) == 12
    assert after["QuantizeLinear"] == 8  # query, key and value share theirs
    assert before["MatMul"] - after["MatMul"] == 12
    assert before["Add"] - after["Add"] == 12  # the biases
    others = before.keys() - {"MatMul", "Add", "Mul", "Gather", "Cast"}
    assert {name: after[name] for name in others} == {name: before[name] for name in others}
    assert list(made.graph.input) == list(model.graph.input)
    assert {i.name for i in made.graph.input} >= {spec.name for spec in banks}
    assert list(made.graph.output) == list(model.graph.output)
    onnx.checker.check_model(model, full_check=False)


def test_half_banks_are_read_as_halves_and_answer_nearly_the_same(built):
    _, banks, feeds, made = built
    halved = with_half_banks(made, banks)
    types = {i.name: i.type.tensor_type.elem_type for i in halved.graph.input}
    names = {spec.name for spec in banks}
    assert {types[name] for name in names} == {TensorProto.FLOAT16}
    assert {types[name] for name in types.keys() - names} == {TensorProto.INT64}
    half = {n: v.astype(np.float16) if n in names else v for n, v in feeds.items()}
    rounded = {n: v.astype(np.float32) if n in names else v for n, v in half.items()}
    for found, wanted in zip(run(halved, **half), run(made, **rounded), strict=True):
        assert np.array_equal(found, wanted)  # widened before it is used


def test_the_operators_are_onnxruntimes_own(built):
    domains = {node.domain for node in built[3].graph.node}
    assert domains == {"", "com.microsoft"}
    assert not built[3].functions
    assert helper.make_opsetid("", 20) in built[3].opset_import
