"""FSDP: the frozen encoder divided among the processes, each layer whole only while it works.

An adapter is small and lives on every process, so Accelerate prepares it as for plain data parallel
training (DDP), whatever was asked for. What FSDP has to divide is the encoder, which has no
gradients and no optimizer: torch's `fully_shard` keeps a part of each layer on each process, and
gathers the layer for its forward and once more for its backward pass (Zhao et al. 2023,
arXiv 2304.11277). The methods of a bank work, and LoRA's one function with its Linear too, since
it keeps no copies of gathered weights; the whole fast path doesn't (adaptx.training.fast).

Accelerate itself knows no FSDP on CPUs and would put the adapter into the same division; so
`ACCELERATE_USE_FSDP`, which `accelerate launch` sets, is read here and hidden from it.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adaptx.encoder.encoder import Encoder
from adaptx.encoder.sites import Site, cast_sites
from adaptx.errors import OptionError
from adaptx.training.fast import FastBert

if TYPE_CHECKING:
    from accelerate import Accelerator

    from adaptx.adapters.adapter import Adapter

FSDP = "ACCELERATE_USE_FSDP"
# The environment that a `fsdp_config` becomes: its key, the value that works, and what to do.
# Keys that aren't here change nothing: the units are always the layers.
FSDP_CONFIG = {
    "FSDP_VERSION": ("fsdp_version", "2", "1 is torch's older FSDP"),
    "FSDP_OFFLOAD_PARAMS": ("fsdp_offload_params", "false", "the parts stay on their devices"),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": (
        "fsdp_cpu_ram_efficient_loading", "false", "each process reads the encoder's file itself"
    ),
    "FSDP_ACTIVATION_CHECKPOINTING": (
        "fsdp_activation_checkpointing", "false", "say --checkpointing instead"
    ),
}  # fmt: skip


def fsdp_asked() -> bool:
    """Whether `accelerate launch` was told to use FSDP."""
    return _is_true(FSDP)


def check_launch() -> None:
    """Raise OptionError where `accelerate launch` was told what isn't done here."""
    for kind in ("DEEPSPEED", "MEGATRON_LM"):
        if _is_true(f"ACCELERATE_USE_{kind}"):
            raise OptionError(_unknown(kind))
    if not fsdp_asked():
        return
    for variable, (key, works, why) in FSDP_CONFIG.items():
        # accelerate's own defaults, where a launcher of another kind sets nothing
        found = os.environ.get(variable, "1" if key == "fsdp_version" else "false").lower()
        if found != works:
            raise OptionError(
                f"{key}: {found} in the fsdp_config of Accelerate doesn't work here ({why}): write "
                f"{key}: {works}, as in recipes/accelerate/fsdp.yaml."
            )


@contextmanager
def fsdp_hidden() -> Iterator[None]:
    """An Accelerator made inside prepares for DDP where FSDP was asked for."""
    said = os.environ.pop(FSDP, None)
    try:
        yield
    finally:
        if said is not None:
            os.environ[FSDP] = said


def check_distribution(accelerator: Accelerator) -> None:
    """Raise OptionError for a way to distribute that train() doesn't know, and for fp16 without the
    scaler that its small gradients need.
    """
    kind = str(accelerator.distributed_type.value)
    if kind == "FSDP":
        raise OptionError(
            "An accelerator of your own can't bring FSDP: leave `accelerator` out, and say FSDP to "
            "`accelerate launch`, as in recipes/accelerate/fsdp.yaml."
        )
    if not kind.startswith(("NO", "MULTI_")):
        raise OptionError(_unknown(kind))
    if accelerator.mixed_precision == "fp16" and accelerator.scaler is None:
        raise OptionError(
            f"fp16 scales its losses, which Accelerate does on GPUs, and not on this "
            f'{accelerator.device.type}: precision "auto" (--precision auto) chooses the faster of '
            f"bf16 and fp32."
        )


def place(encoder: Encoder, adapter: Adapter, accelerator: Accelerator) -> None:
    """Put both on the process's device; under FSDP the adapter alone (see `held`).

    Raises OptionError for an adapter that brings its own model, which FSDP doesn't divide, and for
    a task that needs the whole table of embeddings.
    """
    if not _divides(accelerator):
        encoder.to(accelerator.device)
    elif adapter.model is not None:
        raise OptionError(
            f"FSDP divides the frozen encoder, and {adapter.facts.method} brings a model of its "
            f"own: train it with one process for each device (MULTI_GPU), or take LoRA."
        )
    elif adapter.task is not None and not adapter.task.answers:
        raise OptionError(
            f"FSDP divides the encoder's embeddings too, which {adapter.task.kind} needs whole: "
            f"train it with one process for each device (MULTI_GPU)."
        )
    adapter.to(accelerator.device)


@contextmanager
def held(
    encoder: Encoder, accelerator: Accelerator, dtype: torch.dtype | None = None
) -> Iterator[Encoder]:
    """The encoder to work with inside: its sites in `dtype`, under FSDP divided.

    It is an object of its own: what the fast path makes of its weights is for this time alone.
    """
    if _divides(accelerator):
        yield _divided(encoder, accelerator, dtype)
        return
    with cast_sites(encoder.sites.values(), dtype):
        working = copy.copy(encoder)
        try:
            yield working
        finally:  # an error's traceback, or an accelerator, may know of it for long
            FastBert.let_go(working)


def _divides(accelerator: Accelerator) -> bool:
    return fsdp_asked() and accelerator.num_processes > 1


def _divided(encoder: Encoder, accelerator: Accelerator, dtype: torch.dtype | None) -> Encoder:
    """The encoder on the processes' devices, a part of each layer on each; its sites in `dtype`.

    The encoder that was given stays whole, where it is. Every process must make the same number of
    forward passes from here on: each of them waits for the others' parts.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    memo: dict[int, Any] = {id(p): _alias(p) for p in encoder.model.parameters()}
    memo |= {id(b): b.detach() for b in encoder.model.buffers()}
    made = copy.copy(encoder)
    made.model = copy.deepcopy(encoder.model, memo)
    made.config = encoder.config
    made.sites = {m.name: m for m in made.model.modules() if isinstance(m, Site)}
    for site in made.sites.values() if dtype else ():
        for parameter in site.base.parameters():
            parameter.data = parameter.data.to(dtype)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    embeddings = made.model.get_input_embeddings()
    for unit in (embeddings, *_layers(made.model), made.model):
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    return made


def _alias(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.detach(), requires_grad=False)


def _layers(module: nn.Module) -> list[nn.Module]:
    """The layers: what stands in the outermost lists of modules."""
    found = []
    for child in module.children():
        found += list(child) if isinstance(child, nn.ModuleList) else _layers(child)
    return found


def _unknown(kind: str) -> str:
    return (
        f"Training by {kind} isn't there. For an encoder that fits on each device use "
        f"MULTI_GPU, as in recipes/accelerate/gpus_8.yaml; for a larger one FSDP, as in "
        f"recipes/accelerate/fsdp.yaml."
    )


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"
