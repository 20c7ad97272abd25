import threading
from contextlib import nullcontext

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from torch import nn

from adaptx import Adapter
from adaptx.adapters.bank import Bank
from adaptx.adapters.lora import LoraBank
from adaptx.adapters.route import Route
from adaptx.encoder.encoder import Encoder
from adaptx.errors import OptionError
from tests.adapters.peft_oracle import inputs

EXPORTED = ["bert", "distilbert", "deberta-v2", "modernbert"]


def acting(encoder, seed, rank=4, targets="all-linear"):
    config = LoraConfig(r=rank, init_lora_weights=False, target_modules=targets)
    return Adapter.new(encoder, None, config, name=f"a{seed}", seed=seed)


@pytest.mark.parametrize("ids", [[-1], [3], [[1, 3]], [], [[[1]]]])
def test_ids_outside_the_bank_are_refused(small, ids):
    bank = Bank.of([acting(small, 1), acting(small, 2)], small)
    with pytest.raises(OptionError, match="slots 0"):
        bank.route(ids)


def test_a_batch_of_one_adapter_is_the_same_with_one_id_or_many(small):
    bank = Bank.of([acting(small, 1), acting(small, 2)], small)
    ids, mask = inputs(4)
    with torch.no_grad():
        one = small.hidden(ids, mask, bank.route([2]))
        many = small.hidden(ids, mask, bank.route([2, 2, 2, 2]))
    torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-5)


def test_threads_keep_their_own_routes(small):
    adapters = [acting(small, seed) for seed in range(1, 5)]
    bank = Bank.of(adapters, small)
    ids, mask = inputs(2)
    with torch.no_grad():
        wanted = [small.hidden(ids, mask, bank.route([slot])) for slot in range(5)]
    start = threading.Barrier(5)
    wrong = []

    def work(slot):
        start.wait()
        for _ in range(20):
            with torch.no_grad():
                found = small.hidden(ids, mask, bank.route([slot]) if slot else None)
            if not torch.allclose(found, wanted[slot], atol=1e-5):
                wrong.append(slot)

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_gradient_checkpointing_recomputes_with_the_forwards_route(small_folders):
    """The backward pass runs after the forward's route is gone, and after another forward."""
    grads = []
    for checkpointing in (False, True):
        encoder = Encoder.from_pretrained(small_folders["bert"])
        adapters = [acting(encoder, 1), acting(encoder, 2)]
        bank = Bank.of(adapters, encoder)
        ids, mask = inputs(4)
        with encoder.checkpointing() if checkpointing else nullcontext():
            loss = encoder.hidden(ids, mask, bank.route([1, 0, 2, 1])).pow(2).sum()
            encoder.hidden(ids, mask, bank.route([2]))
            loss.backward()
        assert not any(module.training for module in encoder.model.modules())
        grads.append([p.grad for adapter in adapters for p in adapter.parameters()])
    assert all(grad is not None and grad.abs().max() > 0 for grad in grads[1])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-5, atol=1e-4)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(slots=st.lists(st.integers(0, 3), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_packed_rows_take_an_id_for_each_token(small, slots, seed):
    """Against the formula, token by token, at one site."""
    adapters = [acting(small, s, rank=r) for s, r in ((1, 4), (2, 2), (3, 7))]
    name = "encoder.layer.0.intermediate.dense"
    bank = Bank.of(adapters, small)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, len(slots), 32, generator=generator)
    y = small.sites[name].base(x)
    found = bank.route(slots, packed=True).at(small.sites[name], x)
    for token, slot in enumerate(slots):
        wanted = y[0, token]
        if slot:
            site = adapters[slot - 1].sites[name]
            wanted = wanted + site.scale * (site.b @ (site.a @ x[0, token]))
        torch.testing.assert_close(found[0, token], wanted, rtol=1e-5, atol=1e-5)


class Exported(nn.Module):
    """The encoder as a function of ids, mask, slots and banks, as a serving graph has it."""

    def __init__(self, encoder, names):
        super().__init__()
        self.encoder, self.names, self.model = encoder, names, encoder.model

    def forward(self, input_ids, attention_mask, adapter_ids, *banks):
        sites = {n: LoraBank(banks[2 * i], banks[2 * i + 1]) for i, n in enumerate(self.names)}
        bank = Bank(sites, slots=3)
        return self.encoder.hidden(input_ids, attention_mask, Route(bank, adapter_ids))


@pytest.mark.parametrize(
    ("family", "dynamo"),
    [
        *[(family, False) for family in EXPORTED],
        *[pytest.param(family, True, marks=pytest.mark.slow) for family in EXPORTED],
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_the_route_survives_both_onnx_exporters(small_folders, tmp_path, family, dynamo):
    small = Encoder.from_pretrained(small_folders[family])
    bank = Bank.of([acting(small, 1, 4), acting(small, 2, 3, r".*[qQ].*")], small)
    names = list(bank.sites)
    arrays = [t.detach() for n in names for t in (bank.sites[n].a_NIR, bank.sites[n].b_NRO)]
    ids, mask = inputs(3, 7)
    adapter_ids = torch.tensor([[1], [0], [2]])
    labels = [f"{kind}.{name}" for name in names for kind in ("a", "b")]
    batch, length = {0: "batch", 1: "tokens"}, {0: "ids"}
    shapes = {"input_ids": batch, "attention_mask": batch, "adapter_ids": length}
    if dynamo:
        free = torch.export.Dim.DYNAMIC
        dims = {
            "input_ids": {0: free, 1: free},
            "attention_mask": {0: free, 1: free},
            "adapter_ids": {0: free},
            "banks": tuple({} for _ in arrays),
        }
        extra = {"dynamo": True, "dynamic_shapes": dims, "optimize": True, "verbose": False}
    else:
        extra = {"dynamo": False, "dynamic_axes": shapes, "opset_version": 17}
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        Exported(small, names).eval(),
        (ids, mask, adapter_ids, *arrays),
        str(path),
        input_names=["input_ids", "attention_mask", "adapter_ids", *labels],
        output_names=["hidden"],
        **extra,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {label: np.ascontiguousarray(a) for label, a in zip(labels, arrays, strict=True)}
    ids, mask = inputs(5, 11, seed=8)
    for slots in ([1, 2, 0, 1, 2], [0, 0, 0, 0, 0], [2, 2, 1, 0, 1]):
        with torch.no_grad():
            wanted = small.hidden(ids, mask, bank.route(slots))
        feeds |= {
            "input_ids": ids.numpy(),
            "attention_mask": mask.numpy(),
            "adapter_ids": np.array(slots)[:, None],
        }
        (found,) = session.run(None, feeds)
        real = mask.bool().numpy()
        np.testing.assert_allclose(found[real], wanted.numpy()[real], rtol=1e-4, atol=1e-4)
