"""The fast path against the plain one: states, gradients, trainings."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode

import adaptx as ax
from adaptx.adapters import frozen
from adaptx.adapters.bank import Bank
from adaptx.training import fast
from adaptx.training.fast import FastBert, Linears, Tokens, unfit
from tests.training.test_train import LORA, fit, losses

SHAPED = ("bert", "roberta", "xlm-roberta")


def lora(encoder, seed=0, **options):
    """An adapter that does something, and trains."""
    config = LoraConfig(
        **({"r": 4, "target_modules": "all-linear", "lora_alpha": 7} | options),
        init_lora_weights=False,
    )
    task = ax.tasks.Classification(("a", "b", "c"))
    made = ax.Adapter.new(encoder, task, config, name=f"x{seed}", seed=seed)
    return made.requires_grad_(True)


def batch(lengths, vocabulary=5000, seed=0):
    """Token ids and their mask, padded on the right with 1."""
    random = np.random.default_rng(seed)
    ids = np.ones((len(lengths), max(lengths)), np.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = random.integers(5, vocabulary, length)
    ids = torch.from_numpy(ids)
    return ids, (ids != 1).long()


def gradients(adapters, states, mask):
    """Of a sum that depends on every real token, by adapter and name."""
    for adapter in adapters:
        adapter.zero_grad()
    weights = torch.sin(torch.arange(states.numel())).view(states.shape)
    (states.float() * weights * mask[:, :, None]).sum().backward()
    return [
        {name: p.grad.clone() for name, p in adapter.named_parameters() if p.grad is not None}
        for adapter in adapters
    ]


def close(found, wanted, tolerance):
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.keys() == theirs.keys() and mine
        for name, gradient in theirs.items():
            assert (mine[name] - gradient).norm() <= tolerance * gradient.norm(), name


@pytest.fixture(params=[True, False], ids=["laid out", "as they are"])
def laid_out(request, monkeypatch):
    """Frozen weights as on x86, and as on other devices."""
    if not request.param:
        monkeypatch.setattr(frozen, "_packs", lambda *_: False)


@pytest.fixture(scope="module")
def encoders(small_folders):
    return {family: ax.Encoder.from_pretrained(small_folders[family]) for family in SHAPED}


ONE_FIXTURE = [HealthCheck.function_scoped_fixture]  # it is the same for every example


@settings(max_examples=25, deadline=None, suppress_health_check=ONE_FIXTURE)
@given(
    family=st.sampled_from(SHAPED),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    targets=st.sampled_from(
        ["all-linear", ["query", "value"], ["intermediate.dense"], r".*layer\.1.*(key|dense)"]
    ),
)
def test_states_and_gradients_are_the_plain_paths(encoders, laid_out, family, lengths, targets):
    encoder = encoders[family]
    adapter, (ids, mask) = lora(encoder, target_modules=targets), batch(lengths)
    plain = adapter.hidden(encoder, ids, mask, fused=False)
    fast = FastBert(encoder, torch.float32).hidden(ids, mask, [(len(ids), adapter)])
    real = mask.bool()
    torch.testing.assert_close(fast[real], plain[real], rtol=1e-5, atol=1e-5)
    close(gradients([adapter], fast, mask), gradients([adapter], plain, mask), 1e-5)


@settings(max_examples=25, deadline=None, suppress_health_check=ONE_FIXTURE)
@given(
    shares=st.lists(
        st.tuples(st.sampled_from([0, 1, 2]), st.lists(st.integers(1, 20), min_size=1, max_size=3)),
        min_size=1,
        max_size=4,
    )
)
@example(shares=[(1, [7, 3]), (2, [20, 4]), (0, [4])])
@example(shares=[(2, [5, 5]), (1, [5, 5])])  # nothing is padding
@example(shares=[(0, [3]), (0, [4])])
def test_rows_of_several_adapters_are_the_banks(encoders, laid_out, shares):
    encoder = encoders["bert"]
    adapters = [lora(encoder, 1), lora(encoder, 2, r=8, target_modules=["query", "output.dense"])]
    ids, mask = batch([length for _, lengths in shares for length in lengths])
    route = Bank.of(adapters, encoder).route([slot for slot, its in shares for _ in its])
    plain = encoder.hidden(ids, mask, route)
    owners = [(len(its), [None, *adapters][slot]) for slot, its in shares]
    fast = FastBert(encoder, torch.float32).hidden(ids, mask, owners)
    torch.testing.assert_close(fast[mask.bool()], plain[mask.bool()], rtol=1e-5, atol=1e-5)
    used = [adapter for slot, adapter in enumerate(adapters, 1) if slot in dict(shares)]
    if used:
        close(gradients(used, fast, mask), gradients(used, plain, mask), 1e-5)


def test_attention_takes_neighbours_of_like_length_together():
    _, mask = batch([7, 3, 20, 4, 19, 19, 4])
    tokens = Tokens(mask, [2, 2, 1, 1, 1], torch.float32)
    assert [tuple(group.shape) for group in tokens.groups] == [(2, 7), (2, 20), (2, 19), (1, 4)]
    assert (tokens.shares, tokens.sizes) == ([10, 24, 19, 19, 4], [10, 24, 38, 4])
    x = torch.randn(76, 6)
    assert torch.equal(tokens.packed(tokens.padded(x)), x)
    seen = []
    again = tokens.by_group(lambda value, away: seen.append((value.shape, away.shape)) or value, x)
    assert torch.equal(again, x)
    assert seen == [((n, s, 6), (n, 1, 1, s)) for n, s in ((2, 7), (2, 20), (2, 19), (1, 4))]
    padding = Tokens(batch([20, 20, 20, 5])[1], [1, 1, 1, 1], torch.float32)  # of all four, 19%
    assert [tuple(group.shape) for group in padding.groups] == [(4, 20)]
    nearly = Tokens(batch([20, 19, 20])[1], [1, 2], torch.float32)  # kept padded
    assert (nearly.shares, nearly.sizes, nearly.gaps) == ([20, 40], [60], None)


def test_bf16_is_as_near_to_fp32_as_autocast_is(encoder, laid_out):
    adapter, (ids, mask) = lora(encoder), batch([12, 30, 21, 17], vocabulary=200_000)
    exact = gradients([adapter], adapter.hidden(encoder, ids, mask, fused=False), mask)[0]
    with torch.autocast("cpu", torch.bfloat16):
        cast = gradients([adapter], adapter.hidden(encoder, ids, mask, fused=False), mask)[0]
    states = FastBert(encoder, torch.bfloat16).hidden(ids, mask, [(4, adapter)])
    fast = gradients([adapter], states, mask)[0]

    def error(found):
        return np.mean([float((found[n] - g).norm() / g.norm()) for n, g in exact.items()])

    assert error(fast) < 1.3 * error(cast) < 0.1


def linears_of(fast, layer):
    return [its for its in fast.layers[layer] if isinstance(its, Linears)]


def test_nothing_is_computed_below_the_lowest_adapter(small):
    upper = r".*layer\.1\..*"
    adapter, (ids, mask) = lora(small, target_modules=upper), batch([5, 9])
    asked = []
    fast = FastBert(small, torch.float32)
    states = fast.hidden(ids, mask, [(2, adapter)])

    def walk(node):
        if node is not None and node not in asked:
            asked.append(node)
            for below, _ in node.next_functions:
                walk(below)

    walk(states.grad_fn)
    held = [node.frozen for node in asked if hasattr(node, "frozen")]
    first = [its.frozen for its in linears_of(fast, 0)]
    assert len(held) == len(first) == 4 and not set(held) & set(first)


def test_the_lowest_adapter_costs_its_own_products_alone(small):
    """No gradient of what it reads: du, dB and dA, and no product with W."""
    site = "encoder.layer.1.output.dense"
    adapter, (ids, mask) = lora(small, target_modules=[site]), batch([6, 6])
    fast = FastBert(small, torch.float32)
    states = fast.hidden(ids, mask, [(2, adapter)])
    with FlopCounterMode(display=False) as counted:
        states.sum().backward()
    inputs, outputs = small.sites[site].in_features, small.sites[site].out_features
    assert counted.get_total_flops() == 2 * 12 * 4 * (2 * outputs + inputs)
    # oneDNN's products aren't counted: their weights haven't been laid out.
    assert not any("_packed_back" in vars(its.frozen) for its in linears_of(fast, 1))


def test_an_encoders_weights_are_laid_out_once(small_folders):
    encoder = ax.Encoder.from_pretrained(small_folders["bert"])
    one = FastBert.of(encoder, torch.float32)
    assert FastBert.of(encoder, torch.float32) is one
    assert FastBert.of(encoder, torch.bfloat16) is not one
    FastBert.let_go(encoder)
    assert FastBert.of(encoder, torch.float32) is not one
    FastBert.let_go(encoder)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_training_leaves_nothing_laid_out(small, precision, monkeypatch):
    """Whoever still knows of what it ran on: here the test, otherwise an error's traceback."""
    made, of = [], FastBert.of
    monkeypatch.setattr(FastBert, "of", lambda *given: made.append(of(*given)) or made[-1])
    fit(small, precision=precision, epochs=1, probe_first=True)
    assert len(made) == 2 and made[0] is made[1]  # the probe's, and the training's
    for layer, _ in enumerate(made[0].layers):
        for its in linears_of(made[0], layer):
            assert not any(name.startswith("_") for name in vars(its.frozen))
    assert not fast._made


def test_recomputed_layers_give_the_same_gradients(small_folders):
    encoder = ax.Encoder.from_pretrained(small_folders["bert"])
    adapter, (ids, mask) = lora(encoder), batch([9, 25, 4])

    def found():
        states = FastBert(encoder, torch.float32).hidden(ids, mask, [(3, adapter)])
        return gradients([adapter], states, mask)

    kept = found()
    with encoder.checkpointing():
        assert FastBert(encoder, torch.float32).recomputes
        close(found(), kept, 1e-6)


def test_a_training_has_the_plain_paths_losses(small):
    fast, plain = (fit(small, lr=3e-3, fast=on) for on in (True, False))
    assert losses(fast) == pytest.approx(losses(plain), rel=1e-4)


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        ("bert", {}, None),
        ("distilbert", {}, "distilbert isn't shaped like BERT"),
        ("bert", {"lora_dropout": 0.1}, "LoRA's dropout"),
        ("bert", {"use_dora": True}, "a model of its own"),
    ],
)
def test_where_it_doesnt_fit_it_says_why(small_folders, capsys, family, options, said):
    encoder = ax.Encoder.from_pretrained(small_folders[family])
    config = LoraConfig(r=4, target_modules="all-linear", **options)
    adapter = fit(encoder, config, epochs=1)
    found, shown = unfit(encoder, [adapter]), capsys.readouterr()
    if said is None:
        assert found is None and "fast path" not in shown.out + shown.err
    else:
        assert said in found and said in " ".join((shown.out + shown.err).split())


def test_the_frozen_weights_are_as_they_were_after_bf16(small):
    before = {name: tensor.clone() for name, tensor in small.model.state_dict().items()}
    fit(small, LORA, precision="bf16", epochs=1)
    after = small.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
