"""PEFT's configuration in an adapter's folder, and the LoRA parts that go with it."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adaptx import storage
from adaptx.adapters import folder as layout
from adaptx.adapters.lora import LoraSite, check_config, rank_and_scale
from adaptx.errors import FolderError, choices

if TYPE_CHECKING:
    from peft import LoraConfig


def resolved(config: LoraConfig, sites: list[str], encoder: str) -> LoraConfig:
    """A copy with every target by its full name: it means the same on any model class."""
    config = copy.deepcopy(config)
    config.target_modules, config.exclude_modules = sites, None
    config.layers_to_transform = config.layers_pattern = None
    config.modules_to_save = None
    config.base_model_name_or_path = encoder
    return config


def read_config(path: Path) -> Any:
    """The PEFT configuration in a file; FolderError for one that this peft doesn't know."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    value = storage.read_json(path)
    kind = value.get("peft_type")
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise FolderError(f"{path} configures {kind!r}, no method that this peft knows.")
    made_by = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    known = made_by.__dataclass_fields__
    if unknown := sorted(key for key in value.keys() - known.keys() if value[key]):
        raise FolderError(
            f"{path} has options that {kind} in this peft doesn't know: {choices(unknown)}. "
            f"Correct them, or upgrade peft; there is {', '.join(known)}."
        )
    if "total_step" in known and not value.get("total_step"):
        value |= {"total_step": 2**31}  # AdaLoRA asks for it; the training sets it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = made_by.from_peft_type(**made_by.check_kwargs(**value))
    except (TypeError, ValueError, AttributeError) as error:
        raise FolderError(f"{path} can't be a configuration of {kind}: {error}") from error
    if getattr(config, "megatron_config", None):  # PEFT would import the module that it names
        raise FolderError(f"{path} asks for Megatron's layers, which adaptx doesn't load.")
    return config


def read_sites(path: Path, names: list[str], config: LoraConfig) -> dict[str, LoraSite]:
    """The LoRA parts in a weights file, which must have just these sites, at the config's ranks."""
    from peft import LoraConfig

    if type(config) is not LoraConfig:
        raise FolderError(f"{path.parent} says it is a LoRA, and its configuration isn't one.")
    check_config(config)
    sites = {}
    for name, (a, b) in layout.site_tensors(path, names).items():
        rank, scale = rank_and_scale(config, name)
        if a.shape[0] != rank:
            raise FolderError(f"{path}: the rank at {name} is {a.shape[0]}, not {rank}.")
        parts = torch.from_numpy(a), torch.from_numpy(b)
        sites[name] = LoraSite(*parts, scale, config.lora_dropout)
    return sites
