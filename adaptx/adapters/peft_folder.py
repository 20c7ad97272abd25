"""Folders that PEFT wrote, from anywhere: trained on an AutoModel, or on one with a classifier.

A model class with a head keeps its encoder under a prefix (`bert.`, `roberta.`, `model.` …), and
PEFT saves what `modules_to_save` names beside the adapter's own tensors. The prefix is stripped;
the classifier becomes the adapter's head. No key may be missing and none left over, so that the
adapter answers as it did where it was trained. Dimensions: L labels, H hidden width.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptx import storage
from adaptx.adapters import folder as layout
from adaptx.adapters import own_model
from adaptx.adapters.adapter import Adapter
from adaptx.adapters.head import Head
from adaptx.adapters.lora import (
    LoraSite,
    check_config,
    matches,
    rank_and_scale,
    targets,
    unexpressed,
)
from adaptx.adapters.peft_config import read_config
from adaptx.encoder.encoder import Encoder
from adaptx.errors import FolderError, OptionError, choices
from adaptx.tasks import Classification

GENERATORS = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
CLASSIFIERS = ("SEQ_CLS", "FEATURE_EXTRACTION", None)
PATTERNS = (  # what PEFT's methods let a module have of its own, by a regular expression
    *("rank_pattern", "alpha_pattern", "lambda_pattern"),
    *("n_frequency_pattern", "block_size_pattern"),
)
KEYS = {  # how a method looks for a pattern's key in a module's name, where not as LoRA does
    "osf": "{}",
    "fourierft": r"^.*\.{}$",
    "c3a": r"^.*\.{}$",
}
# bias="all" saves the biases of what modules_to_save names again, by the names of PEFT's wrapper.
_TWICE = re.compile(r"\.(original_module|modules_to_save)\.")


@dataclass(frozen=True)
class HeadLayout:
    """Where a family's …ForSequenceClassification keeps its head.

    dense, norm, out   module paths; the first two may be absent
    activation         behind dense: a name, or "config.<key>"
    """

    out: str
    dense: str = ""
    activation: str = ""
    norm: str = ""


HEADS = {
    "bert": HeadLayout("classifier", "bert.pooler.dense", "tanh"),
    "roberta": HeadLayout("classifier.out_proj", "classifier.dense", "tanh"),
    "xlm-roberta": HeadLayout("classifier.out_proj", "classifier.dense", "tanh"),
    "distilbert": HeadLayout("classifier", "pre_classifier", "relu"),
    "deberta-v2": HeadLayout("classifier", "pooler.dense", "config.pooler_hidden_act"),
    "modernbert": HeadLayout(
        "classifier", "head.dense", "config.classifier_activation", "head.norm"
    ),
}


def from_peft(folder: Path, encoder: Encoder, labels: Sequence[str] | None = None) -> Adapter:
    """The adapter in a folder that PEFT wrote, for an encoder that the caller vouches for.

    Without `labels`, a head's labels are those of the encoder's config where their number fits,
    else LABEL_0, LABEL_1 …, as transformers calls them. Raises FolderError where the folder was
    trained on another architecture or a decoder, and for keys that are missing or left over.
    """
    layout.refuse_pickle(folder)
    config = read_config(folder / layout.CONFIG)
    check_task(config, folder)
    parts = _split(folder, encoder)
    _check_saved(config, parts, encoder)
    config.modules_to_save = None  # what they were stands in `parts.rest`, and must be a head
    where = HEADS[encoder.config.model_type]
    classified = any(name.startswith(f"{where.out}.") for name in parts.rest)
    if parts.rest and not classified:
        raise FolderError(
            f"{parts.path} has {len(parts.rest)} tensors too many for an adapter without a head: "
            f"{choices(sorted(parts.rest))}."
        )
    head = _head(parts, where, config, encoder) if classified else None
    task = _task(head, encoder, labels, folder)
    facts = layout.Facts(
        name=layout.folder_name(folder),
        method=own_model.method_name(config),
        encoder=encoder.name,
        fingerprint=encoder.fingerprint,
        prefix="",  # PEFT puts nothing before a text
        max_length=None,
        language=None,
        task=task.to_json() if task else None,
        head=head.options if head else {},
    )
    with _doubting(encoder):
        if facts.method == "lora" and not unexpressed(config):
            config, sites = _lora_sites(parts, where, config, encoder)
            adapter = Adapter.of(encoder, facts, config, head, task, sites=sites)
        else:
            with own_model.refusals(facts.method):
                config = _on_auto_model(config, parts, encoder)
            model = own_model.peft_model(encoder, config)
            own_model.load_peft_state(model, parts.body, parts.path)
            adapter = Adapter.of(encoder, facts, config, head, task, model=model)
        adapter.check_shapes(encoder)
    return adapter.requires_grad_(False).eval()


@dataclass
class _Parts:
    """A folder's tensors: `body` by PEFT's names for an AutoModel, `rest` by the class's own."""

    path: Path
    prefix: str  # "bert." …, or "" for an AutoModel
    body: dict[str, Tensor] = field(default_factory=dict)
    rest: dict[str, Tensor] = field(default_factory=dict)


def check_task(config: Any, folder: Path) -> None:
    """Raise FolderError for a folder that was trained for anything but a classifier."""
    task = config.task_type and str(getattr(config.task_type, "value", config.task_type))
    if task in GENERATORS:
        raise FolderError(
            f"{folder} was trained with task_type {task}, on a decoder that writes text: adaptx "
            f"adapts encoders."
        )
    if task not in CLASSIFIERS:
        raise FolderError(
            f"{folder} was trained with task_type {task}; adaptx imports classifiers (SEQ_CLS) and "
            f"adapters without a head."
        )


def _split(folder: Path, encoder: Encoder) -> _Parts:
    path = folder / layout.WEIGHTS
    tensors = own_model.read_torch_tensors(path)
    model: Any = encoder.model
    own = f"{model.base_model_prefix}."
    names = {key: key.removeprefix(layout.PREFIX) for key in tensors}
    inside = any(name.startswith(own) for name in names.values())
    parts = _Parts(path, own if inside else "")
    children = {name for name, _ in encoder.model.named_children()}
    pooler = f"{parts.prefix}pooler."
    for key, name in names.items():
        if not key.startswith(layout.PREFIX):  # what a method keeps once, such as VeRA's
            parts.body[key] = tensors[key]
        elif inside and name.startswith(own) and not name.startswith(pooler):
            parts.body[layout.PREFIX + name.removeprefix(own)] = tensors[key]
        elif not inside and name.split(".")[0] in children:
            parts.body[key] = tensors[key]
        elif _TWICE.search(name):
            continue
        elif inside or not name.startswith(pooler):  # an AutoModel's pooler touches no token state
            parts.rest[name.replace(".base_layer.", ".")] = tensors[key]
    if not parts.body:
        raise FolderError(
            f"{path} has no key that fits the encoder {encoder.name!r}, which has "
            f"{choices(sorted(children))}; it has {choices(sorted(names.values()))}: it was "
            f"trained on another architecture than {encoder.config.model_type}."
        )
    return parts


def _check_saved(config: Any, parts: _Parts, encoder: Encoder) -> None:
    """Raise FolderError where parts of the encoder were trained whole."""
    names = [parts.prefix + name for name in _modules(encoder)]
    asked = getattr(config, "modules_to_save", None) or ()
    if saved := [module for module in asked if any(_names(module, name) for name in names)]:
        raise FolderError(
            f"{parts.path} has parts of the encoder, trained whole by modules_to_save={saved}: "
            f"adapters share the encoder's, so they can't be imported."
        )


@contextmanager
def _doubting(encoder: Encoder) -> Iterator[None]:
    """A folder whose tensors don't fit names the wrong encoder, as likely as not."""
    try:
        yield
    except FolderError as error:
        raise FolderError(
            f"{error} Was it trained on another encoder than {encoder.name!r}? Then name that one "
            f"with --encoder."
        ) from error


def _lora_sites(
    parts: _Parts, head: HeadLayout, config: Any, encoder: Encoder
) -> tuple[Any, dict[str, LoraSite]]:
    """The sites of a LoRA folder, and its configuration by their full names."""
    check_config(config)
    full = {parts.prefix + name: name for name in encoder.sites}
    asked = _at_sites(config, parts, full, head)
    names = [full[name] for name in targets(asked, full, encoder.config.model_type)]
    sites, ranks, alphas = {}, {}, {}
    for site, (a, b) in layout.fit_sites(parts.path, parts.body, names).items():
        rank, scale = rank_and_scale(config, parts.prefix + site)
        if a.shape[0] != rank:
            raise FolderError(f"{parts.path}: the rank at {site} is {a.shape[0]}, not {rank}.")
        sites[site] = LoraSite(a.float(), b.float(), scale, config.lora_dropout)
        ranks[site] = rank
        alphas[site] = scale * (rank**0.5 if config.use_rslora else rank)
    config = copy.deepcopy(config)
    config.rank_pattern = {s: r for s, r in ranks.items() if r != config.r}
    config.alpha_pattern = {s: a for s, a in alphas.items() if a != config.lora_alpha}
    return config, sites


def _at_sites(config: Any, parts: _Parts, full: Iterable[str], head: HeadLayout) -> Any:
    """The configuration without the targets that lie in the head alone: PEFT matched them there."""
    asked = copy.copy(config)
    if isinstance(asked.target_modules, (list, set, tuple)):
        sites, beside = list(full), [f"{parts.prefix}pooler.dense", head.out, head.dense]
        asked.target_modules = [
            target
            for target in asked.target_modules
            if any(_names(target, name) for name in sites)
            or not any(_names(target, name) for name in beside)
        ]
    return asked


def _names(target: str, module: str) -> bool:
    return module == target or module.endswith(f".{target}")


def _on_auto_model(config: Any, parts: _Parts, encoder: Encoder) -> Any:
    """The configuration as it reads on an AutoModel: all that it matched there, by full names.

    PEFT matches it on the class's own names, which a regular expression may spell in any way.
    """
    config = copy.deepcopy(config)
    asked, prefix = getattr(config, "target_modules", None), parts.prefix
    if isinstance(tokens := getattr(config, "trainable_token_indices", None), dict):
        config.trainable_token_indices = {m.removeprefix(prefix): ids for m, ids in tokens.items()}
    if isinstance(asked, str) and asked.lower() == "all-linear":
        asked = {prefix + site for site in encoder.sites}
    found = [m for m in _modules(encoder) if asked and matches(config, asked, prefix + m)]
    if not found:  # PEFT's default, which is an AutoModel's; or nothing: PEFT says so
        return config
    for option in PATTERNS:
        if getattr(config, option, None):
            setattr(config, option, _by_name(config, option, prefix, found))
    if (feeding := getattr(config, "feedforward_modules", None)) is not None:
        config.feedforward_modules = [m for m in found if _feeds(feeding, prefix + m)]
    config.target_modules = found
    for option in ("exclude_modules", "layers_to_transform", "layers_pattern"):
        if hasattr(config, option):
            setattr(config, option, None)
    return config


def _modules(encoder: Encoder) -> list[str]:
    """The module paths of the encoder's plain AutoModel."""
    own = {f"{site}.base" for site in encoder.sites}
    return [name for name, _ in encoder.model.named_modules() if name and name not in own]


def _by_name(config: Any, option: str, prefix: str, found: Iterable[str]) -> dict[str, Any]:
    """A pattern's values by the full names of the modules found that it matches."""
    pattern, method = getattr(config, option), own_model.method_name(config)
    if method == "adalora":  # its rank_pattern goes by the names of tensors
        return {key.removeprefix(prefix): value for key, value in pattern.items()}
    keys = {module: _pattern_key(method, list(pattern), prefix + module) for module in found}
    return {module: pattern[key] for module, key in keys.items() if key in pattern}


def _pattern_key(method: str, keys: list[str], name: str) -> str:
    """The key that PEFT takes for a module of this name, or the name itself."""
    from peft.utils.other import get_pattern_key

    if method in KEYS:
        return next((key for key in keys if re.search(KEYS[method].format(key), name)), name)
    return get_pattern_key(keys, name)


def _feeds(feeding: str | Iterable[str], name: str) -> bool:
    """Whether IA3 scales what goes into a module, as PEFT matches it: suffixes need no dot."""
    if isinstance(feeding, str):
        return bool(re.fullmatch(feeding, name))
    return name.endswith(tuple(feeding))


def _head(parts: _Parts, where: HeadLayout, config: Any, encoder: Encoder) -> Head:
    """The head of a classifier: saved modules, the encoder's own, and LoRA at either, in one."""
    modules = {"": where.out, "dense.": where.dense, "norm.": where.norm}
    stored = _stored_head(encoder)
    used: set[str] = set()
    tensors: dict[str, Any] = {}
    for name, module in modules.items():
        if not module:
            continue
        weight = _tensor(parts, stored, f"{module}.weight", used)
        if weight is None:
            raise FolderError(
                f"{parts.path} has a classifier, but not its {module}, and neither has the encoder "
                f"{encoder.name!r}: it was drawn at random where the adapter was trained, and not "
                f"saved, so nobody can answer as it did there. Train it again with "
                f"modules_to_save={_to_save(where)}."
            )
        bias = _tensor(parts, stored, f"{module}.bias", used)
        a, b = (parts.rest.get(f"{module}.lora_{part}.weight") for part in "AB")
        if a is not None and b is not None:
            used |= {f"{module}.lora_A.weight", f"{module}.lora_B.weight"}
            weight = weight + rank_and_scale(config, module)[1] * (b.float() @ a.float())
        tensors[f"{name}weight"] = weight.numpy()
        zeros = torch.zeros(len(weight))
        tensors[f"{name}bias"] = (zeros if bias is None else bias).numpy()
    if extra := sorted(parts.rest.keys() - used):
        raise FolderError(
            f"{parts.path} has {len(extra)} tensors too many for a classifier: {choices(extra)}."
        )
    options: dict[str, Any] = {}
    if where.dense:
        key = where.activation
        named = key.startswith("config.")
        options["activation"] = getattr(encoder.config, key[7:], "gelu") if named else key
    if where.norm:
        options["norm_eps"] = encoder.config.norm_eps
    return Head.of(tensors, options, parts.path)


def _tensor(
    parts: _Parts, stored: Mapping[str, Tensor], name: str, used: set[str]
) -> Tensor | None:
    """A head's tensor in fp32: the folder's, else the encoder's own."""
    if name in parts.rest:
        used.add(name)
        return parts.rest[name].float()
    found = stored.get(name)
    return stored.get(name.removeprefix(parts.prefix)) if found is None else found


def _stored_head(encoder: Encoder) -> dict[str, Tensor]:
    """What the encoder's own files have beside its AutoModel: a pooler, a classifier."""
    found: dict[str, Tensor] = {}
    model: Any = encoder.model
    own = {f"{model.base_model_prefix}.{name}" for name, _ in encoder.model.named_children()}
    own |= {name for name, _ in encoder.model.named_children()}
    from safetensors import safe_open

    for path in sorted(encoder.folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                if not any(name.startswith(f"{child}.") for child in own):
                    found[name] = file.get_tensor(name).float()
    return found


def _to_save(where: HeadLayout) -> list[str]:
    modules = [module.removeprefix("bert.") for module in (where.dense, where.out) if module]
    return sorted({module.split(".")[0] for module in modules})


def _task(
    head: Head | None, encoder: Encoder, labels: Sequence[str] | None, folder: Path
) -> Classification | None:
    if head is None:
        if labels is not None:
            raise OptionError(f"{folder} has no head: there is nothing to label.")
        return None
    count = head.out_features
    if count < 2:
        raise FolderError(f"{folder} has a head with one output, a regression: not a classifier.")
    if labels is None:
        named = storage.read_json(encoder.folder / "config.json").get("id2label") or {}
        plain = [f"LABEL_{i}" for i in range(count)]
        labels = [named[str(i)] for i in range(count)] if len(named) == count else plain
    if len(labels) != count:
        raise OptionError(f"{len(labels)} labels for the {count} outputs of {folder}'s head.")
    pooling = getattr(encoder.config, "classifier_pooling", "cls")
    return Classification(tuple(labels), pooling)
