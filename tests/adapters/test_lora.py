import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig

from adaptx import Adapter, Encoder
from adaptx.adapters.bank import Bank
from adaptx.adapters.lora import LoraSite, targets
from adaptx.errors import OptionError, SiteError
from tests.adapters.peft_oracle import adapter_like, inputs, peft_model

SITES = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def real(hidden, mask):
    return hidden[mask.bool()]  # what stands at padding is nobody's answer


configs = st.builds(
    LoraConfig,
    r=st.integers(1, 9),
    lora_alpha=st.integers(1, 32),
    target_modules=st.sampled_from(
        [
            "all-linear",
            None,
            ["query"],
            ["query", "value", "output.dense"],
            ["dense"],
            ["encoder.layer.1.attention.self.key", "intermediate.dense"],
            r".*layer\.0.*(query|dense)",
        ]
    ),
    exclude_modules=st.sampled_from([None, ["intermediate.dense"], r".*layer\.1.*dense"]),
    layers_to_transform=st.just(None),
    use_rslora=st.booleans(),
    rank_pattern=st.sampled_from([{}, {"query": 3}, {r"layer\.0\..*": 5, "value": 2}]),
    alpha_pattern=st.sampled_from([{}, {"query": 7}, {"layer.1.output.dense": 20}]),
    init_lora_weights=st.sampled_from([True, False, "gaussian"]),
    lora_dropout=st.sampled_from([0.0, 0.1]),
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(config=configs)
def test_one_adapter_answers_as_in_peft_for_any_config(small, config):
    model = peft_model(small.folder, {"one": config})
    adapter = adapter_like(model, small, "one", config)
    ids, mask = inputs()
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=mask)[0]
        ours = small.hidden(ids, mask, Bank.of([adapter], small).route([1]))
        plain = small.hidden(ids, mask)
    close(real(ours, mask), real(theirs, mask))
    assert (real(plain, mask) - real(theirs, mask)).abs().max() > 1e-4  # the adapter acts


def test_layers_to_transform_and_layers_pattern_mean_what_they_mean_in_peft(small):
    config = LoraConfig(
        r=4, target_modules=["query", "key"], layers_to_transform=[1], layers_pattern="layer"
    )
    model = peft_model(small.folder, {"one": config})
    adapter = adapter_like(model, small, "one", config)
    assert set(adapter.sites) == {f"encoder.layer.1.{site}" for site in SITES[:2]}


def three_configs():
    return {
        "a": LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"),
        "b": LoraConfig(r=7, lora_alpha=3, target_modules=["query", "output.dense"]),
        "c": LoraConfig(r=2, lora_alpha=16, use_rslora=True, target_modules=["value"]),
    }


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_a_mixed_batch_answers_and_learns_as_in_peft(small_folders, family):
    from adaptx import Encoder

    encoder = Encoder.from_pretrained(small_folders[family])
    configs = three_configs()
    model = peft_model(small_folders[family], configs)
    ours = [adapter_like(model, encoder, name, configs[name]) for name in configs]
    rows = ["a", "__base__", "c", "b", "a", "b"]
    ids, mask = inputs(len(rows))

    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    theirs = model(input_ids=ids, attention_mask=mask, adapter_names=rows)[0]
    slots = {"__base__": 0, "a": 1, "b": 2, "c": 3}
    route = Bank.of(ours, encoder).route([slots[row] for row in rows])
    mine = encoder.hidden(ids, mask, route)
    close(real(mine, mask), real(theirs, mask))

    weights = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1))
    weights *= mask.unsqueeze(-1)
    (theirs * weights).sum().backward()
    (mine * weights).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    for adapter in ours:
        for site, part in adapter.sites.items():
            for ours_, letter in ((part.a, "A"), (part.b, "B")):
                wanted = grads[f"base_model.model.{site}.lora_{letter}.{adapter.name}.weight"]
                scale = wanted.abs().max().clamp(min=1.0)
                close(ours_.grad / scale, wanted / scale)


def test_one_adapter_learns_as_in_peft(small):
    config = three_configs()["a"]
    model = peft_model(small.folder, {"a": config})
    adapter = adapter_like(model, small, "a", config)
    ids, mask = inputs()
    weights = torch.randn(6, 9, 32, generator=torch.Generator().manual_seed(1))
    weights *= mask.unsqueeze(-1)
    (model(input_ids=ids, attention_mask=mask)[0] * weights).sum().backward()
    (small.hidden(ids, mask, Bank.of([adapter], small).route([1])) * weights).sum().backward()
    for site, part in adapter.sites.items():
        theirs = model.base_model.model.get_submodule(site)
        for ours, wanted in (
            (part.a.grad, theirs.lora_A["a"].weight.grad),
            (part.b.grad, theirs.lora_B["a"].weight.grad),
        ):
            scale = wanted.abs().max().clamp(min=1.0)
            close(ours / scale, wanted / scale)
    assert all(p.grad is None for p in small.model.parameters())


def test_slot_0_is_the_plain_encoder(small_folders):
    from tests.adapters.peft_oracle import plain_model

    small = Encoder.from_pretrained(small_folders["bert"])  # to the bit: through nobody's hands yet
    adapter = Adapter.new(
        small, None, LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear"), name="x"
    )
    ids, mask = inputs()
    with torch.no_grad():
        plain = plain_model(small.folder, attn_implementation="eager")(
            input_ids=ids, attention_mask=mask
        )[0]
        routed = small.hidden(ids, mask, Bank.of([adapter], small).route([0]))
        unrouted = small.hidden(ids, mask)
    assert torch.equal(unrouted, plain)
    close(real(routed, mask), real(plain, mask))


def test_two_positions_are_the_sum_of_two_loras(small):
    both = [
        Adapter.new(
            small,
            None,
            LoraConfig(r=r, init_lora_weights=False, target_modules=["query", "dense"]),
            name=str(r),
            seed=r,
        )
        for r in (3, 5)
    ]
    ids, mask = inputs()
    bank = Bank.of(both, small)
    with torch.no_grad():
        stacked = small.hidden(ids, mask, bank.route([[1, 2]]))
        one, two = (adapter.deltas() for adapter in both)
        merged = small.merged_model({site: one[site] + two[site] for site in one})
        wanted = merged(input_ids=ids, attention_mask=mask)[0]
    close(real(stacked, mask), real(wanted, mask))


def test_merging_is_the_routed_forward(small):
    adapter = Adapter.new(
        small, None, LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear"), name="x"
    )
    before = copy.deepcopy(small.model.state_dict())
    ids, mask = inputs()
    with torch.no_grad():
        merged = small.merged_model(adapter.deltas())
        wanted = merged(input_ids=ids, attention_mask=mask)[0]
        routed = small.hidden(ids, mask, Bank.of([adapter], small).route([1]))
    close(real(routed, mask), real(wanted, mask))
    after = small.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_dropout_acts_in_training_at_each_adapters_own_rate(small):
    def adapter(rate):
        config = LoraConfig(
            r=4, init_lora_weights=False, target_modules="all-linear", lora_dropout=rate
        )
        return Adapter.new(small, None, config, name=str(rate))

    none, half = adapter(0.0), adapter(0.5)
    ids, mask = inputs(4)
    bank = Bank.of([none, half], small)
    route = [1, 2, 1, 2]
    with torch.no_grad():
        still = small.hidden(ids, mask, bank.route(route))
        torch.manual_seed(0)
        first = small.hidden(ids, mask, bank.route(route, training=True))
        second = small.hidden(ids, mask, bank.route(route, training=True))
    close(real(first[::2], mask[::2]), real(still[::2], mask[::2]))
    assert (first[1::2] - second[1::2]).abs().max() > 1e-3


def test_dropout_keeps_the_mean(small):
    from adaptx.adapters.lora import LoraBank

    torch.manual_seed(0)
    bank = LoraBank(torch.zeros(3, 4, 1), torch.zeros(3, 1, 4), (0.0, 0.0, 0.25))
    x = torch.ones(2, 20_000, 4)
    dropped = bank._drop(x, torch.tensor([1, 2]), packed=False)
    assert torch.equal(dropped[0], x[0])
    assert dropped[1].unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert dropped[1].mean().item() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(("init", "b_acts"), [(True, False), ("gaussian", False), (False, True)])
def test_initialization_has_pefts_distributions(encoder, init, b_acts):
    config = LoraConfig(r=16, target_modules="all-linear", init_lora_weights=init)
    adapter = Adapter.new(encoder, None, config, name="x", seed=5)
    site = adapter.sites["encoder.layer.0.output.dense"]  # in 1536
    if init == "gaussian":
        assert site.a.std().item() == pytest.approx(1 / 16, rel=0.05)
    else:
        bound = 1536**-0.5  # Kaiming-uniform with a = sqrt(5)
        assert bound * 0.99 < site.a.abs().max().item() <= bound
        assert site.a.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert bool(site.b.any()) is b_acts
    again = Adapter.new(encoder, None, config, name="x", seed=5)
    assert torch.equal(site.a, again.sites["encoder.layer.0.output.dense"].a)


def test_all_linear_names_the_six_sites_of_each_layer(encoder):
    names = targets(LoraConfig(target_modules="all-linear"), encoder.sites, "bert")
    assert names == [f"encoder.layer.{i}.{site}" for i in range(12) for site in SITES]


@pytest.mark.parametrize(
    "asked", [["nothing"], ["query", "qurey"], r".*nowhere", ["word_embeddings"], []]
)
def test_a_target_that_matches_nothing_names_the_sites(small, asked):
    with pytest.raises(SiteError) as caught:
        Adapter.new(small, None, LoraConfig(target_modules=asked), name="x")
    assert "attention.self.query" in str(caught.value)
    assert "all-linear" in str(caught.value)
    assert ("trainable_token_indices" in str(caught.value)) == (asked == ["word_embeddings"])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"modules_to_save": ["pooler"]}, "modules_to_save"),
        ({"init_lora_weights": "eva"}, "needs data before"),
        ({"init_lora_weights": "pissa_niter_4"}, "drawn anew"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
        ({"lora_dropout": "0.1"}, "lora_dropout='0.1'"),
        ({"r": 2.5}, "r=2.5"),
        ({"use_rslora": "no"}, "use_rslora"),
        ({"rank_pattern": {"query": "a"}}, "pattern"),
        ({"rank_pattern": {"(": 2}}, "pattern"),
        ({"rank_pattern": {"query": 0}}, "rank"),
    ],
)
def test_what_cant_be_is_refused_by_name(small, options, named):
    with pytest.raises(OptionError, match=named):
        Adapter.new(small, None, LoraConfig(target_modules=["query"], **options), name="x")


@given(st.integers(-12, 12), st.integers(-12, 12), st.floats(0.1, 64), st.sampled_from("ab-"))
def test_a_product_is_finite_where_all_of_it_is(big_a, big_b, scale, bad):
    """Of matrices up to 10^±36, whose product may overflow."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in ((4, 6), (5, 4)))
    a, b = a * 10.0 ** (3 * big_a), b * 10.0 ** (3 * big_b)
    if bad == "a":
        a[1, 2] = torch.nan
    if bad == "b":
        b[0, 0] = torch.inf
    site = LoraSite(a, b, scale)
    assert site.is_finite() == bool(site.delta().isfinite().all())
