"""Every family's graph with banks, against torch with the bank: built from weights, or traced."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from peft import LoraConfig

from adaptx import Adapter
from adaptx.adapters.bank import Bank
from adaptx.encoder.encoder import Encoder
from adaptx.onnx.build import build
from adaptx.onnx.probe_texts import PROBE_TEXTS
from adaptx.onnx.quantize import calibrate, inputs_of_products, quantize
from adaptx.runtime.sessions import open_session
from tests.adapters.peft_oracle import inputs
from tests.encoder.families import CONFIGS, write_encoder

VARIANTS = {
    "an activation of its own": ("xlm-roberta", {"hidden_act": "gelu_new"}),
    "position projections of its own": ("deberta-v2", {"share_att_key": False}),
}
RANK = 7  # the largest of the adapters
ROUTES = [  # slots, rows, tokens; one slot stands for all rows
    ([1, 2, 0, 3, 2, 1], 6, 11),
    ([0, 0, 3], 3, 40),
    ([0, 0], 2, 5),
    ([2], 5, 9),
    ([0], 4, 7),
    *(([slot], 1, 3 + slot) for slot in range(4)),
]


@dataclass
class Built:
    """An encoder, three adapters, and the graph whose banks hold them."""

    encoder: Encoder
    adapters: list
    model: object
    specs: list

    def feeds(self, ids, mask, slots):
        banks = filled(self.specs, self.adapters, RANK)
        routed = {"adapter_ids": np.array(slots, np.int64)[:, None], **banks} if banks else {}
        return {"input_ids": ids, "attention_mask": mask, **routed}

    def row(self, ids, slot):
        """Feeds of one row, without padding."""
        row = np.array([ids], np.int64)
        return self.feeds(row, np.ones_like(row), [slot])


def filled(specs, adapters, rank):
    """The banks with `adapters` in slots 1, 2, …; a smaller rank, or no such site, is zeros."""
    banks = {}
    for spec in specs:
        bank = np.zeros((len(adapters) + 1, len(spec.parts) * rank, spec.width), np.float32)
        for slot, adapter in enumerate(adapters, 1):
            for i, (site, kind) in enumerate(spec.parts):
                if site in adapter.sites:
                    part = adapter.sites[site]
                    rows = part.a if kind == "a" else part.b.T * part.scale
                    bank[slot, i * rank : i * rank + len(rows)] = rows.detach().numpy()
        banks[spec.name] = bank
    return banks


def acting(encoder, seed, rank, targets="all-linear"):
    config = LoraConfig(r=rank, init_lora_weights=False, target_modules=targets)
    return Adapter.new(encoder, None, config, name=f"a{seed}", seed=seed)


@pytest.fixture(scope="module", params=[*CONFIGS, *VARIANTS])
def built(request, small_folders, tmp_path_factory):
    folder = small_folders.get(request.param)
    if folder is None:
        family, changes = VARIANTS[request.param]
        folder = write_encoder(tmp_path_factory.mktemp("encoder") / family, family, **changes)
    encoder = Encoder.from_pretrained(folder)
    every_second = list(encoder.sites)[::2]
    adapters = [
        acting(encoder, 1, 4),
        acting(encoder, 2, RANK, every_second),
        acting(encoder, 3, 2, [every_second[0]]),
    ]
    return Built(encoder, adapters, *build(encoder, list(encoder.sites)))


def session(model):
    return open_session(model.SerializeToString(), 2)


def check_against_torch(session, built, ids, mask, slots, route):
    with torch.no_grad():
        wanted = built.encoder.hidden(ids, mask, route).numpy()
    hidden, mean = session.run(["hidden", "mean"], built.feeds(ids.numpy(), mask.numpy(), slots))
    assert hidden.shape == wanted.shape
    real = mask.bool().numpy()
    near(hidden[real], wanted[real])
    near(mean, np.stack([row[kept].mean(0) for row, kept in zip(wanted, real, strict=True)]))


def near(found, wanted):
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_each_row_takes_its_own_adapter_as_in_torch(built):
    running = session(built.model)
    bank = Bank.of(built.adapters, built.encoder)
    for slots, rows, tokens in ROUTES:
        check_against_torch(running, built, *inputs(rows, tokens), slots, bank.route(slots))


def test_the_graph_takes_what_its_banks_say(built):
    """Names, types and shapes, as adaptx.onnx.build has them."""
    found = {i.name: (i.type, i.shape) for i in session(built.model).get_inputs()}
    batch = ("tensor(int64)", ["batch", "tokens"])
    assert found.pop("input_ids") == found.pop("attention_mask") == batch
    assert found.pop("adapter_ids") == ("tensor(int64)", ["rows", "positions"])
    assert found == {spec.name: ("tensor(float)", spec.dimensions) for spec in built.specs}
    parts = [part for spec in built.specs for part in spec.parts]
    assert sorted(parts) == sorted((s, kind) for s in built.encoder.sites for kind in ("a", "b"))


def test_banks_at_some_sites_leave_the_others_plain(built):
    encoder = built.encoder
    sites = list(encoder.sites)[1::3]
    adapter = acting(encoder, 5, RANK, sites)
    some = Built(encoder, [adapter], *build(encoder, sites))
    assert {site for spec in some.specs for site in spec.sites} == set(sites)
    ids, mask = inputs(3)
    route = Bank.of([adapter], encoder).route([1, 0, 1])
    check_against_torch(session(some.model), some, ids, mask, [1, 0, 1], route)


def test_without_sites_it_is_the_plain_encoder(built):
    before = {name: value.clone() for name, value in built.encoder.model.state_dict().items()}
    plain = Built(built.encoder, [], *build(built.encoder, []))
    running = session(plain.model)
    assert [i.name for i in running.get_inputs()] == ["input_ids", "attention_mask"]
    assert plain.specs == []
    check_against_torch(running, plain, *inputs(4), [], None)
    after = built.encoder.model.state_dict()  # the encoder is as it was
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_every_site_that_reads_tokens_is_a_product_to_quantize(built):
    """DeBERTa's own projections of positions read a table, so they are constants already."""
    products = inputs_of_products(built.model)
    of_tables = [name for name in built.encoder.sites if "pos_" in name]
    assert sum(map(len, products.values())) == len(built.encoder.sites) - len(of_tables)
    assert not products.keys() & {tensor.name for tensor in built.model.graph.initializer}
    assert not {"Gemm", "Constant"} & {node.op_type for node in built.model.graph.node}


def test_int8_is_near_and_a_row_doesnt_depend_on_its_neighbours(built):
    encoder = built.encoder
    texts = [ids[:60] for ids in encoder.text.ids(PROBE_TEXTS)]
    seen, new = texts[::2], texts[1::2]
    feeds = [built.row(ids, i % 4) for i, ids in enumerate(seen)]
    ranges = calibrate(built.model, feeds, sum(map(len, seen)))
    small, _ = quantize(built.model, ranges)
    running = session(small)

    # Less their mean: what all vectors have in common would hide how far apart they are.
    wanted, found = (
        np.concatenate([s.run(["mean"], built.row(ids, i % 4))[0] for i, ids in enumerate(new)])
        for s in (session(built.model), running)
    )
    found, wanted = found - wanted.mean(0), wanted - wanted.mean(0)
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    cosines = (found * wanted).sum(1) / lengths
    assert cosines.min() > 0.95 and cosines.mean() > 0.99  # ModernBERT 0.967 and 0.993

    random = np.random.default_rng(0)
    for tokens in (2, 5, 16, 33):
        ids = random.integers(5, 5000, (6, tokens))
        slots = [1, 0, 3, 2, 2, 1]
        hidden, mean = running.run(["hidden", "mean"], built.feeds(ids, np.ones_like(ids), slots))
        for row, slot in enumerate(slots):
            alone = running.run(["hidden", "mean"], built.row(ids[row], slot))
            assert np.array_equal(alone[0][0], hidden[row])
            assert np.array_equal(alone[1][0], mean[row])
