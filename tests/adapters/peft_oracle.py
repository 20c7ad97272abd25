"""PEFT on the same small encoder, as the independent oracle."""

from __future__ import annotations

import copy

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel

from adaptx import Adapter
from adaptx.adapters.bank import Bank


def plain_model(folder, **options):
    """The encoder's AutoModel, unwrapped, in eval(): PEFT's mixed batch needs that."""
    model = AutoModel.from_pretrained(folder, **options).eval()
    if hasattr(model, "pooler"):
        model.pooler = None
    return model


def peft_model(folder, configs: dict[str, LoraConfig], seed: int = 0):
    """A PeftModel with an adapter for each name; its B matrices drawn, so that each one acts."""
    torch.manual_seed(seed)
    first, *others = configs
    model = get_peft_model(plain_model(folder), copy.deepcopy(configs[first]), adapter_name=first)
    for name in others:
        model.add_adapter(name, copy.deepcopy(configs[name]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def adapter_like(model, encoder, name: str, config: LoraConfig) -> Adapter:
    """Our adapter with the weights of PEFT's adapter `name`; the sites must be the same."""
    adapter = Adapter.new(encoder, None, config, name=name)
    theirs = {
        key.removeprefix("base_model.model.").removesuffix(f".lora_A.{name}.weight")
        for key in model.state_dict()
        if key.endswith(f".lora_A.{name}.weight")
    }
    assert set(adapter.sites) == theirs
    state = model.state_dict()
    for site, part in adapter.sites.items():
        for ours, letter in ((part.a, "A"), (part.b, "B")):
            weight = state[f"base_model.model.{site}.lora_{letter}.{name}.weight"]
            assert ours.shape == weight.shape
            ours.data.copy_(weight)
    return adapter


def inputs(rows: int = 6, tokens: int = 9, seed: int = 3):
    """Random token ids with right padding: int64 `[rows, tokens]` twice."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 5000, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        length = tokens - row % 4
        ids[row, length:], mask[row, length:] = 1, 0
    return ids, mask


MIXED = ("a", None, "c", "b", "a", "b")
THREE = {
    "a": LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"),
    "b": LoraConfig(r=7, lora_alpha=3, target_modules=r".*\.\d+\..*[qQ].*|.*mlp\.Wo"),
    "c": LoraConfig(r=2, lora_alpha=16, use_rslora=True, target_modules="all-linear"),
}


def check_against_peft(encoder, rows=MIXED):
    """Answers and gradients of a batch whose rows take these adapters of `THREE`, or none.

    All rows go through ours at once; through PEFT those of one adapter, with that one active.
    """
    configs = {name: THREE[name] for name in THREE if name in rows}
    model = peft_model(encoder.folder, configs)
    adapters = [adapter_like(model, encoder, name, configs[name]) for name in configs]
    ids, mask = inputs(len(rows))
    slots = {None: 0, **{adapter.name: i for i, adapter in enumerate(adapters, 1)}}
    route = Bank.of(adapters, encoder).route([slots[row] for row in rows])
    found = encoder.hidden(ids, mask, route)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    weights *= mask.unsqueeze(-1)
    (found * weights).sum().backward()
    with torch.no_grad():
        plain = encoder.hidden(ids, mask)
    for name in set(rows):
        own = [i for i, row in enumerate(rows) if row == name]
        real = mask[own].bool()
        if name is None:
            close(found[own][real], plain[own][real])
            continue
        model.set_adapter(name)
        theirs = model(input_ids=ids[own], attention_mask=mask[own])[0]
        close(found[own][real], theirs[real])
        assert (plain[own][real] - theirs[real]).abs().max() > 1e-3  # the adapter acts
        (theirs * weights[own]).sum().backward()
    for adapter in adapters:
        for site, part in adapter.sites.items():
            linear = model.base_model.model.get_submodule(site)
            for ours, sides in ((part.a, linear.lora_A), (part.b, linear.lora_B)):
                wanted = sides[adapter.name].weight.grad
                scale = wanted.abs().max().clamp(min=1.0)
                close(ours.grad / scale, wanted / scale)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
