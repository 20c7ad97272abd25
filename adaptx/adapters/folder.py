"""An adapter's folder, without torch: what is written where, and the checks on reading.

    adapter_config.json         PEFT's own
    adapter_model.safetensors   PEFT's names: base_model.model.<site>.lora_A.weight [R, I],
                                              base_model.model.<site>.lora_B.weight [O, R]
                                (what other methods than LoRA name theirs)
    head.safetensors            weight [L, H], bias [L] (see adaptx.adapters.head)
    adaptx.json                 the manifest: `Facts`, and the sha256 of every file
    README.md                   the model card

A probe has neither of the first two. A fully fine-tuned model has config.json, model.safetensors
and the tokenizer in their place, as save_pretrained writes them. A folder that PEFT wrote has only
the first two.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from adaptx import hub, storage
from adaptx.adapters.card import model_card
from adaptx.errors import FolderError, OptionError, choices

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
HEAD = "head.safetensors"
CARD = "README.md"
# Of a Hub repository; no pickle and no code. A whole model has a tokenizer.
FILES = ("*.json", "*.safetensors", CARD, *hub.TOKENIZER_FILES)
PREFIX = "base_model.model."
NONE = "none"  # in a command, for no adapter
T = TypeVar("T", bound=Any)  # an array or a tensor


@dataclass(frozen=True)
class Facts:
    """What the manifest says of an adapter.

    `scales` has the factor of each site's update, so that a reader needs no PEFT to apply it; it is
    empty for what a bank can't hold. `head` is `Head.options`. `training` is for people: settings,
    data and scores. `evaluation` has the test scores of each data set, and of all of them under
    "all" when there are several.
    """

    name: str
    method: str  # "lora", "probe" for a head alone, "full", or another of PEFT's: "dora", "ia3" …
    encoder: str
    fingerprint: str
    prefix: str
    max_length: int | None
    language: str | None
    task: dict[str, Any] | None
    head: dict[str, Any] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)

    @property
    def way(self) -> str:
        """How it answers: "head" (the plain encoder's states), "bank" (a batch may mix it with
        others), "own pass" (PEFT's layers, a batch of its own) or "model" (every weight).
        """
        if self.method in ("probe", "full"):
            return {"probe": "head", "full": "model"}[self.method]
        return "bank" if self.scales else "own pass"


_KINDS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "method": (str,),
    "encoder": (str,),
    "fingerprint": (str,),
    "prefix": (str,),
    "max_length": (int, type(None)),
    "language": (str, type(None)),
    "task": (dict, type(None)),
    "head": (dict,),
    "scales": (dict,),
    "training": (dict,),
    "evaluation": (dict,),
}


def write_facts(folder: Path, facts: Facts, names: Collection[str] | None = None) -> None:
    """Write the model card and, last, the manifest with the sha256 of every file, or of `names`."""
    (folder / CARD).write_text(model_card(facts), encoding="utf-8")
    storage.write_manifest(folder, "adapter", asdict(facts), names)


def record_evaluation(folder: Path, evaluation: dict[str, Any]) -> None:
    """Write scores into an adapter's folder, with a fresh model card; whole or not at all.

    Raises FolderError when a file other than the card isn't what its sha256 says.
    """
    facts, manifest = read_facts(folder)
    with storage.new_folder(folder, overwrite=True) as made:
        shutil.copytree(folder, made, dirs_exist_ok=True)
        for name in manifest["files"].keys() - {CARD}:
            storage.check_file(made, name, manifest)
        known = manifest["files"].keys() | {CARD}  # not a clone's .git
        write_facts(made, replace(facts, evaluation=evaluation), known)


def read_facts(folder: Path) -> tuple[Facts, dict[str, Any]]:
    """The facts of a folder that adaptx wrote, and its manifest. Raises FolderError."""
    if folder.is_dir() and not any(
        (folder / name).is_file() for name in (storage.MANIFEST, CONFIG)
    ):
        raise FolderError(
            f"{folder} is no adapter's folder: it has neither {storage.MANIFEST}, which adaptx "
            f"writes, nor PEFT's {CONFIG}."
        )
    manifest = storage.read_manifest(folder, "adapter")
    known = Facts.__dataclass_fields__
    try:
        facts = Facts(**{key: value for key, value in manifest.items() if key in known})
    except TypeError as error:
        raise FolderError(f"{folder / storage.MANIFEST} isn't whole: {error}.") from None
    for name, kinds in _KINDS.items():
        value = getattr(facts, name)
        few = name == "max_length" and isinstance(value, int) and value < 1
        if not isinstance(value, kinds) or isinstance(value, bool) or few or _is_broken(value):
            raise FolderError(f"{folder / storage.MANIFEST}: {name} can't be {value!r}.")
    if not facts.method.isidentifier():
        raise FolderError(
            f"{folder / storage.MANIFEST}: method {facts.method!r} can't be a method's name."
        )
    try:
        check_name(facts.name)
    except OptionError as error:
        raise FolderError(f"{folder / storage.MANIFEST}: {error}") from None
    return facts, manifest


def check_name(name: str) -> str:
    """An adapter's name is also a folder's name; raises OptionError for one that can't be."""
    path = name in ("", ".", "..") or any(c in "/\\\0" or ord(c) < 32 for c in name)
    if path or _is_broken(name):
        raise OptionError(f"{name!r} can't be an adapter's name: it must be fit for a folder's.")
    if name == NONE:
        raise OptionError(f"An adapter can't be called {NONE!r}: that stands for no adapter.")
    return name


def _is_broken(value: object) -> bool:
    """Whether a text is no Unicode: JSON can escape half a surrogate pair."""
    return isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value)


def folder_name(folder: Path) -> str:
    """The name of an adapter whose folder says none: the folder's, or its Hub repository's.

    What comes from the Hub lies in its cache, in models--user--name/snapshots/<commit>.
    """
    folder = folder.resolve()
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return check_name(folder.parent.parent.name.rpartition("--")[2])
    return check_name(folder.name)


def site_tensors(path: Path, sites: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(A `[R, I]`, B `[O, R]`) by site, from a weights file that must have just these sites.

    Raises FolderError with the missing and the left-over keys, or a shape that doesn't fit.
    """
    return fit_sites(path, storage.read_tensors(path), sites)


def fit_sites(path: Path, tensors: Mapping[str, T], sites: list[str]) -> dict[str, tuple[T, T]]:
    """`site_tensors` of tensors that were read from `path`, NumPy's or torch's."""
    wanted = {f"{PREFIX}{site}.lora_{part}.weight" for site in sites for part in "AB"}
    if missing := sorted(wanted - tensors.keys()):
        raise FolderError(f"{path} lacks {len(missing)} tensors: {choices(missing)}.")
    if extra := sorted(tensors.keys() - wanted):
        raise FolderError(f"{path} has {len(extra)} tensors too many: {choices(extra)}.")
    found = {}
    for site in sites:
        a, b = (tensors[f"{PREFIX}{site}.lora_{part}.weight"] for part in "AB")
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise FolderError(
                f"{path}: at {site}, lora_A {list(a.shape)} and lora_B {list(b.shape)} don't fit "
                f"together ([R, I] and [O, R] are needed)."
            )
        found[site] = (a, b)
    return found


def head_tensors(
    path: Path, outputs: int | None, options: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """A head file's tensors by name (see adaptx.adapters.head), their names and shapes checked.

    `outputs` None: as many as it has.
    """
    tensors = storage.read_tensors(path)
    shapes = {name: list(array.shape) for name, array in tensors.items()}
    weight = shapes.get("weight") or [0]
    outputs, width = weight[0] if outputs is None else outputs, weight[-1]
    wanted = {"weight": [outputs, width], "bias": [outputs]}
    if options.get("activation"):
        wanted |= {"dense.weight": [width, width], "dense.bias": [width]}
    if options.get("norm_eps"):
        wanted |= {"norm.weight": [width], "norm.bias": [width]}
    if shapes != wanted:
        raise FolderError(
            f"{path} has {shapes}; a head of {outputs} labels that adaptx.json describes has "
            f"{wanted}."
        )
    return tensors


def refuse_pickle(folder: Path) -> None:
    """Raise FolderError where the weights are there only as a pickle, or not at all."""
    if (folder / WEIGHTS).is_file():
        return
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise FolderError(
            f"{folder} has its weights as a pickle ({choices(pickles)}). A pickle can run code "
            f"when it is opened, so adaptx reads none: save it with PEFT's "
            f"save_pretrained(…, safe_serialization=True), which writes {WEIGHTS}."
        )
    raise FolderError(f"{folder} has no {WEIGHTS}: is this an adapter's folder?")
