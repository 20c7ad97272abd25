"""Adapters that a bank can't hold: they bring a model of their own.

    Full                  a copy of the encoder, every weight of which trains: the baseline
    PEFT's other methods  (DoRA, IA3, VeRA, AdaLoRA …) PEFT's layers in a copy of the encoder's
                          modules, whose frozen tensors are the encoder's own, held once

Rows of such an adapter get a forward pass of their own; everything else (loop, head, folder,
evaluation, merged export) is the same. Methods: Mangrulkar et al. 2022, PEFT.
"""

from __future__ import annotations

import copy
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adaptx import storage
from adaptx.adapters.expressed import HEADS
from adaptx.adapters.lora import targets
from adaptx.encoder.encoder import Encoder
from adaptx.encoder.families import FAMILIES
from adaptx.encoder.sites import plain_copy
from adaptx.errors import FolderError, OptionError, SiteError, choices
from adaptx.hub import TOKENIZER_FILES

if TYPE_CHECKING:
    from peft import PeftConfig

# Values of init_lora_weights that need data first, or that no other process draws again.
UNREPEATABLE = ("eva", "corda", "loftq", "lora_ga", "pissa_niter")
REFUSED = {  # PEFT's name -> why
    "XLORA": "it mixes several trained adapters",
    "POLY": "it mixes several tasks' adapters",
    "ADAPTION_PROMPT": "it is made for decoders",
    "SHADOW": "it answers with the states of a second model",
}


@dataclass(frozen=True)
class Full:
    """Full fine-tuning, given where a PEFT configuration may stand.

    dropout   of the copy's dropout layers while it trains; a frozen encoder has none
    """

    dropout: float = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise OptionError(f"dropout={self.dropout!r} must be at least 0 and below 1.")


def full_model(encoder: Encoder, config: Full) -> nn.Module:
    """A plain AutoModel with the encoder's weights, all of which train."""
    from transformers import AutoModel

    settings = copy.deepcopy(encoder.config)
    for name in _dropouts(settings.to_dict()):
        setattr(settings, name, config.dropout)
    options = {"add_pooling_layer": False} if FAMILIES[settings.model_type].pooler else {}
    with torch.random.fork_rng():
        model = AutoModel.from_config(settings, **options)
    model.load_state_dict(plain_copy(encoder.model, {}).state_dict())
    return model.float().to(encoder.device).eval()


def peft_model(encoder: Encoder, config: PeftConfig) -> nn.Module:
    """PEFT's model around a copy of the plain AutoModel that shares the frozen tensors.

    A tensor that the method changes or trains is the copy's own. Raises OptionError for a method
    that can't work here and for what PEFT refuses, SiteError for targets that match nothing.
    """
    from peft import LoraConfig, get_peft_model

    config = copy.deepcopy(config)
    method = _type(config)
    if config.is_prompt_learning:
        raise OptionError(
            f"{method} adds virtual tokens to the input, which no site or merged model can express."
            f" Methods that change the encoder's layers work: LoRA, DoRA, IA3, VeRA …"
        )
    if method in REFUSED:
        raise OptionError(f"{method} doesn't work on one frozen encoder: {REFUSED[method]}.")
    init = getattr(config, "init_lora_weights", None)
    if isinstance(init, str) and init.startswith(UNREPEATABLE):
        raise OptionError(
            f"init_lora_weights={init!r} needs data before the training, or is drawn anew wherever "
            f"the adapter is opened; 'pissa', 'olora', 'orthogonal' and 'gaussian' aren't."
        )
    if type(config) is LoraConfig and not config.target_parameters:
        config.target_modules = targets(config, encoder.sites, encoder.config.model_type)
        config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    config.base_model_name_or_path, config.inference_mode = encoder.name, False
    if saved := sorted(set(getattr(config, "modules_to_save", None) or ()) - HEADS):
        raise OptionError(
            f"modules_to_save={saved} would train parts of the encoder, which adapters share."
            f" The head is saved without being asked for; to train everything, use Full()."
        )
    config.task_type = None  # the head is adaptx's
    if hasattr(config, "modules_to_save"):
        config.modules_to_save = None
    originals: dict[int, Any] = {}
    base = plain_copy(encoder.model, {}, originals)
    with refusals(method):
        made = get_peft_model(base, config)
    _share(made, originals)
    return made.eval()


def _share(model: nn.Module, originals: dict[int, Tensor]) -> None:
    """Put the encoder's own tensors where the copy's still hold the same values, frozen."""
    for module in model.modules():
        for kind in (module._parameters, module._buffers):
            for name, tensor in kind.items():
                original = originals.get(id(tensor))
                if original is None or tensor is None or tensor.requires_grad:
                    continue
                if torch.equal(tensor, original):
                    kind[name] = original


def own_names(model: nn.Module, encoder: Encoder) -> frozenset[str]:
    """The names in the model's state dict of the tensors that aren't the encoder's."""
    shared = {id(tensor) for tensor in encoder.model.state_dict(keep_vars=True).values()}
    found = model.state_dict(keep_vars=True).items()
    return frozenset(name for name, tensor in found if id(tensor) not in shared)


def merged(model: nn.Module, method: str) -> nn.Module:
    """A plain AutoModel that answers like the model, and shares nothing with it."""
    made: Any = copy.deepcopy(model)
    if not hasattr(made, "peft_config"):
        return made
    with refusals(method):
        return made.merge_and_unload(safe_merge=True)


def save_full(model: nn.Module, source: Path | None, folder: Path) -> None:
    """Write a whole model as save_pretrained does, with tokenizer and dropouts from `source`."""
    saved: Any = model
    saved.save_pretrained(folder)
    if source is None:
        return
    written, original = (storage.read_json(f / "config.json") for f in (folder, source))
    dropouts = {name: original[name] for name in _dropouts(original)}  # not what trained it here
    storage.write_json(folder / "config.json", written | dropouts)
    for path in source.iterdir():
        if path.is_file() and any(path.match(pattern) for pattern in TOKENIZER_FILES):
            shutil.copy(path, folder)


def _dropouts(config: dict[str, Any]) -> list[str]:
    """The settings of a config that are a dropout's share; families have names of their own."""
    return [k for k, v in config.items() if "dropout" in k and isinstance(v, (int, float))]


def peft_state(model: nn.Module) -> dict[str, Tensor]:
    """What PEFT keeps of a model in adapter_model.safetensors, by its names."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(model, save_embedding_layers=False)


def load_peft_state(model: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Fill a model with a folder's tensors: no key missing, none left over, every shape right."""
    from peft import set_peft_model_state_dict

    wanted = peft_state(model).keys()
    if missing := sorted(wanted - tensors.keys()):
        raise FolderError(f"{where} lacks {len(missing)} tensors: {choices(missing)}.")
    if extra := sorted(tensors.keys() - wanted):
        raise FolderError(f"{where} has {len(extra)} tensors too many: {choices(extra)}.")
    try:
        set_peft_model_state_dict(model, tensors)
    except (RuntimeError, ValueError, KeyError) as error:
        said = " ".join(str(error).split())
        raise FolderError(f"{where} doesn't fit the encoder or its configuration: {said}") from None


def read_torch_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file as it is, whole numbers too; FolderError when damaged or not finite."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise FolderError(f"{path} is damaged, or not safetensors ({error}).") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise FolderError(f"{path}: tensor {name!r} has NaN or infinite values.")
    return tensors


def total_steps(config: Any, steps: int) -> None:
    """AdaLoRA's schedule counts optimizer steps: tell an adapter's how many there are.

    Raises OptionError where they are too few for it.
    """
    if hasattr(config, "total_step"):
        config.total_step = steps
        with refusals(_type(config)):
            config.__post_init__()


def allocates(model: nn.Module | None) -> bool:
    """Whether the method gives its ranks out as it trains (AdaLoRA, Zhang et al. 2023)."""
    return hasattr(getattr(model, "base_model", None), "update_and_allocate")


def after_backward(model: Any, step: int) -> None:
    """AdaLoRA gives its ranks out anew at each step, by the gradients."""
    if allocates(model):
        model.base_model.update_and_allocate(step)


def regularization(model: nn.Module | None) -> Tensor | float:
    """AdaLoRA's pull of P and Q towards orthogonality, |P'P - I| + |QQ' - I|; else 0."""
    configs: Any = getattr(model, "peft_config", {})
    weight = getattr(configs.get("default"), "orth_reg_weight", 0) if configs else 0
    if not weight or model is None:
        return 0.0
    found = []
    for name, p in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            gram = p @ p.T if ".lora_A." in name else p.T @ p
            found.append(torch.dist(gram, torch.eye(len(gram), device=p.device)))
    return weight * torch.stack(found).mean() if found else 0.0


def method_name(config: PeftConfig) -> str:
    """`dora`, `ia3` …: what the manifest calls the method."""
    return "dora" if getattr(config, "use_dora", False) else _type(config).lower()


def _type(config: PeftConfig) -> str:
    return str(getattr(config.peft_type, "value", config.peft_type))


@contextmanager
def refusals(method: str) -> Iterator[None]:
    """What PEFT refuses becomes an OptionError; its warnings are for its own users."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (
        *(ValueError, TypeError, KeyError, NotImplementedError, AttributeError),
        *(RuntimeError, IndexError, AssertionError, re.error),
    ) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        kind = SiteError if "arget module" in said else OptionError
        raise kind(f"PEFT refuses this {method} configuration: {said}") from error
    except ImportError as error:
        raise OptionError(f"PEFT's {method} needs a package that isn't here: {error}") from error
