"""PEFT on the same small encoder, as the independent oracle."""

from __future__ import annotations

import copy

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel

from adaptx import Adapter


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
