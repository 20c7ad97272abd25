"""Which options of `adaptx train` go together, and the method that they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from adaptx.errors import OptionError, choices
from adaptx.training.many_file import KEYS
from adaptx.training.settings import Settings
from adaptx.training.together_file import TASK, TOP


class Method(str, Enum):
    """How the encoder is changed."""

    lora = "lora"
    dora = "dora"
    probe = "probe"
    full = "full"


MANY = (
    *("output", "config", "encoder", "prefix", "precision", "fast"),
    *("run", "resume", "checkpoint_every", "overwrite", "dry_run"),
)
TOGETHER = (*MANY, "checkpointing")
# What such a file calls the other options, where it has them: itself, or in its `lora`.
LORA_KEYS = {name: name for name in ("r", "lora_alpha", "target_modules", "use_rslora")}
LORA_KEYS["dropout"] = "lora_dropout"
MANY_KEYS = {*KEYS, *Settings.__dataclass_fields__} - {"accumulate", "micro_tokens"}
TOGETHER_KEYS = {*TOP, *TASK}


def given(ctx: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def check_file(ctx: typer.Context, taken: Sequence[str], keys: set[str], where: str) -> None:
    """Raise OptionError for options that a file with many adapters or tasks says itself, or that
    are nothing to it.
    """
    said = [name for name in ctx.params if given(ctx, name) and name not in taken]
    named = {name: "--" + name.replace("_", "-") for name in said}
    other = [named[name] for name in said if name not in {*LORA_KEYS, *keys}]
    if other:
        raise OptionError(
            f"{choices(other)} can't be had for a file of many adapters or tasks: leave it out."
        )
    if said:
        found = [f"lora: {{{LORA_KEYS[n]}: …}}" if n in LORA_KEYS else f"{n}: …" for n in said]
        raise OptionError(
            f"{choices(named.values())} would have no effect with a file of many adapters or "
            f"tasks: write {choices(found)} {where}."
        )


def check_options(ctx: typer.Context, method: Method, config: Path | None, task: str) -> None:
    """Raise OptionError for options that would have no effect."""
    said = {name for name in ctx.params if given(ctx, name)}
    lora = {"r", "lora_alpha", "target_modules", "use_rslora"}
    loop = {
        *("epochs", "lr", "accumulate", "micro_tokens", "warmup", "weight_decay", "clip"),
        *("patience", "smoothing"),
    }
    without: dict[str, set[str]] = {}
    if config is not None:
        without["--config"] = {*lora, "method", "dropout"}
        if not config.is_file():
            raise OptionError(f"--config {config}: there is no such file.")
    elif method is Method.probe:
        without["--method probe"] = {*lora, "dropout", "checkpointing", "probe_first"}
        if task in ("classification", "pairs"):  # solved, not trained in steps
            without["--method probe"] |= loop
    elif method is Method.full:
        without["--method full"] = lora
    for where, useless in without.items():
        if both := sorted(said & useless):
            names = choices("--" + name.replace("_", "-") for name in both)
            raise OptionError(f"{names} would have no effect with {where}: leave it out.")


def method_of(
    method: Method,
    r: int,
    lora_alpha: float | None,
    target_modules: str,
    dropout: float | None,
    use_rslora: bool,
) -> Any:
    """The configuration that the options make."""
    from peft import LoraConfig

    from adaptx.adapters.own_model import Full

    if method is Method.probe:
        return None
    if method is Method.full:
        return Full() if dropout is None else Full(dropout)
    if r < 1:
        raise OptionError(f"--r {r} must be at least 1.")
    asked: Any = [part.strip() for part in target_modules.split(",")]
    return LoraConfig(
        r=r,
        lora_alpha=lora_alpha if lora_alpha is not None else r,
        target_modules=target_modules if target_modules == "all-linear" else asked,
        lora_dropout=dropout or 0.0,
        use_rslora=use_rslora,
        use_dora=method is Method.dora,
    )
