"""An adapter: learnt arrays at the sites of one encoder, and usually a head. One folder on disk.

Dimensions: B rows, S tokens, H hidden width, L labels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adaptx import storage
from adaptx.adapters import folder as layout
from adaptx.adapters.bank import Bank
from adaptx.adapters.finding import find_folder
from adaptx.adapters.lora import LoraSite, check_config, init_sites, rank_and_scale, targets
from adaptx.encoder.encoder import Encoder, mean_pool
from adaptx.errors import FingerprintError, FolderError, OptionError
from adaptx.tasks import Classification, Prediction, task_from_json

if TYPE_CHECKING:
    from peft import LoraConfig


class Adapter(nn.Module):
    """Learnt arrays at sites, and the head of a task; belongs to one encoder.

    sites         LoraSite by module path; empty for a probe
    head          Linear(H, L), or None without a task
    facts         what adaptx.json says: name, encoder and its fingerprint, task, language …
    config        the peft.LoraConfig, its target_modules resolved to full names; None for a probe
    """

    def __init__(
        self,
        facts: layout.Facts,
        config: LoraConfig | None,
        sites: Mapping[str, LoraSite],
        head: nn.Linear | None,
        task: Classification | None,
    ):
        super().__init__()
        self.facts, self.config, self.task, self.head = facts, config, task, head
        self.sites = dict(sites)
        for name, site in self.sites.items():
            self.add_module(name.replace(".", "/"), site)

    @classmethod
    def new(
        cls,
        encoder: Encoder,
        task: Classification | None,
        config: LoraConfig | None,
        *,
        name: str,
        language: str | None = None,
        max_length: int | None = None,
        seed: int = 0,
    ) -> Adapter:
        """A fresh adapter: `config` says which sites it has; None makes a probe, a head alone.

        Raises SiteError for a target that matches nothing, OptionError for an option of
        LoraConfig that a bank can't express.
        """
        generator = torch.Generator().manual_seed(seed)
        sites: dict[str, LoraSite] = {}
        if config is not None:
            sites = init_sites(config, encoder.sites, encoder.config.model_type, generator)
            config = _resolved(config, list(sites), encoder.name)
        head = None
        if task is not None:
            head = nn.Linear(encoder.hidden_size, task.outputs)
            nn.init.normal_(head.weight, std=0.02, generator=generator)
            nn.init.zeros_(head.bias)
        facts = layout.Facts(
            name=layout.check_name(name),
            method="probe" if config is None else "lora",
            encoder=encoder.name,
            fingerprint=encoder.fingerprint,
            prefix=encoder.prefix,
            max_length=max_length,
            language=language,
            task=task.to_json() if task else None,
            scales={site: part.scale for site, part in sites.items()},
        )
        return cls(facts, config, sites, head, task).to(encoder.device)

    def __repr__(self) -> str:
        return (
            f"Adapter({self.name!r}, {self.facts.method}, {len(self.sites)} sites, "
            f"{self.parameters_count:,} parameters, task={self.facts.task})"
        )

    @property
    def name(self) -> str:
        """The adapter's name."""
        return self.facts.name

    @property
    def prefix(self) -> str:
        """What it was trained with before every text."""
        return self.facts.prefix

    @property
    def max_length(self) -> int | None:
        """The tokens it was trained to read at most; None: the encoder's own limit."""
        return self.facts.max_length

    @property
    def parameters_count(self) -> int:
        """How many weights the adapter has, its head included."""
        return sum(parameter.numel() for parameter in self.parameters())

    def check_encoder(self, encoder: Encoder) -> None:
        """Raise FingerprintError unless the adapter belongs to this encoder."""
        if self.facts.fingerprint != encoder.fingerprint:
            raise FingerprintError(
                self.name,
                self.facts.encoder,
                self.facts.fingerprint,
                encoder.name,
                encoder.fingerprint,
            )

    def _check_shapes(self, encoder: Encoder) -> None:
        for name, part in self.sites.items():
            site = encoder.sites.get(name)
            found = (part.a.shape[1], part.b.shape[0])
            if site is None or found != (site.in_features, site.out_features):
                wanted = f"{site.in_features} -> {site.out_features}" if site else "no such site"
                raise FolderError(
                    f"Adapter {self.name!r} has {found[0]} -> {found[1]} at {name}, which doesn't "
                    f"fit the encoder ({wanted})."
                )
        if self.head is not None and self.head.in_features != encoder.hidden_size:
            raise FolderError(
                f"Adapter {self.name!r} has a head for {self.head.in_features} inputs, and the "
                f"encoder is {encoder.hidden_size} wide."
            )

    @staticmethod
    def bank(adapters: Sequence[Adapter], encoder: Encoder) -> Bank:
        """The bank of these adapters; adapter i is slot i + 1."""
        return Bank.of(adapters, encoder)

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """One vector of each row's token states: `[B, S, H]`, `[B, S]` -> `[B, H]`."""
        if self.task is not None and self.task.pooling == "cls":
            return hidden[:, 0]
        return mean_pool(hidden, mask)

    def logits(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """The head on pooled states: `[B, S, H]`, `[B, S]` -> fp32 `[B, L]`."""
        if self.head is None:
            raise OptionError(f"Adapter {self.name!r} has no head.")
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(self.pool(hidden.float(), mask))

    def answer(self, pooled: Tensor) -> list[Prediction] | None:
        """Predictions from pooled states `[B, H]`, or None without a head."""
        if self.head is None or self.task is None:
            return None
        logits = self.head(pooled.to(self.head.weight.device))
        return self.task.decode(logits.detach().cpu().numpy())

    def deltas(self) -> dict[str, Tensor]:
        """What merging adds to the weight `[out, in]` of each site."""
        return {name: site.delta().detach() for name, site in self.sites.items()}

    def with_training(self, training: Mapping[str, Any]) -> Adapter:
        """Record facts of the training (settings, data, scores); returns the adapter itself."""
        self.facts = replace(self.facts, training=dict(training))
        return self

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the adapter's folder, whole or not at all (see adaptx.adapters.folder)."""
        from safetensors.numpy import save_file

        with storage.new_folder(folder, overwrite=overwrite) as made:
            if self.config is not None:
                _saved(self.config).save_pretrained(str(made))
                tensors = {}
                for site, part in self.sites.items():
                    tensors[f"{layout.PREFIX}{site}.lora_A.weight"] = _array(part.a)
                    tensors[f"{layout.PREFIX}{site}.lora_B.weight"] = _array(part.b)
                save_file(tensors, made / layout.WEIGHTS, metadata={"format": "pt"})
            if self.head is not None:
                head = {"weight": _array(self.head.weight), "bias": _array(self.head.bias)}
                save_file(head, made / layout.HEAD, metadata={"format": "pt"})
            layout.write_facts(made, self.facts)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path, encoder: Encoder | None = None) -> Adapter:
        """Open an adapter's folder, every file checked against its sha256.

        With `encoder`, the adapter is checked to belong to it and put on its device. A folder that
        PEFT wrote (for an AutoModel) says nothing of its encoder: it needs `encoder`, and is taken
        to belong to it. Raises FolderError or FingerprintError.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FolderError(f"There is no adapter folder {folder}.")
        if not (folder / storage.MANIFEST).is_file() and (folder / layout.CONFIG).is_file():
            return cls._from_peft(folder, encoder)
        facts, manifest = layout.read_facts(folder)
        config, sites = None, {}
        if facts.method != "probe":
            layout.refuse_pickle(folder)
            config = _read_config(storage.check_file(folder, layout.CONFIG, manifest))
            path = storage.check_file(folder, layout.WEIGHTS, manifest)
            sites = _read_sites(path, list(facts.scales), config)
            if facts.scales != {name: site.scale for name, site in sites.items()}:
                raise FolderError(
                    f"{folder}: the scales in {storage.MANIFEST} aren't those of {layout.CONFIG}."
                )
        head, task = None, None
        if facts.task is not None:
            task = task_from_json(facts.task)
            path = storage.check_file(folder, layout.HEAD, manifest)
            weight, bias = layout.head_tensors(path, task.outputs)
            head = nn.Linear(weight.shape[1], weight.shape[0])
            head.weight.data, head.bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
        adapter = cls(facts, config, sites, head, task)
        if encoder is not None:
            adapter.check_encoder(encoder)
            adapter._check_shapes(encoder)
            adapter.to(encoder.device)
        return adapter

    @classmethod
    def from_pretrained(
        cls, name: str | Path, encoder: Encoder | None = None, revision: str | None = None
    ) -> Adapter:
        """Open an adapter by its folder, or by `user/name[@revision]` on the Hub.

        Only JSON and safetensors are downloaded, once, into the Hub's cache. Raises HubError for
        a repository that can't be read, and what `load` raises.
        """
        return cls.load(find_folder(name, revision), encoder)

    @classmethod
    def _from_peft(cls, folder: Path, encoder: Encoder | None) -> Adapter:
        if encoder is None:
            raise FolderError(
                f"{folder} was written by PEFT and doesn't say which encoder it fits: give the "
                f"encoder too, as in Adapter.load(folder, encoder)."
            )
        layout.refuse_pickle(folder)
        config = _read_config(folder / layout.CONFIG)
        check_config(config)
        names = targets(config, encoder.sites, encoder.config.model_type)
        sites = _read_sites(folder / layout.WEIGHTS, names, config)
        facts = layout.Facts(
            name=layout.folder_name(folder),
            method="lora",
            encoder=encoder.name,
            fingerprint=encoder.fingerprint,
            prefix=encoder.prefix,
            max_length=None,
            language=None,
            task=None,
            scales={name: site.scale for name, site in sites.items()},
        )
        adapter = cls(facts, _resolved(config, names, encoder.name), sites, None, None)
        adapter._check_shapes(encoder)
        return adapter.to(encoder.device)


def _resolved(config: LoraConfig, sites: list[str], encoder: str) -> LoraConfig:
    """A copy with every target by its full name: it means the same on any model class."""
    config = copy.deepcopy(config)
    config.target_modules, config.exclude_modules = sites, None
    config.layers_to_transform = config.layers_pattern = None
    config.base_model_name_or_path = encoder
    return config


def _saved(config: LoraConfig) -> LoraConfig:
    config = copy.deepcopy(config)
    config.inference_mode = True
    return config


def _read_config(path: Path) -> LoraConfig:
    from peft import LoraConfig

    value = storage.read_json(path)
    if value.get("peft_type") != "LORA":
        raise FolderError(
            f"{path} configures the PEFT method {value.get('peft_type')!r}; adaptx reads LORA."
        )
    try:
        return LoraConfig.from_pretrained(str(path.parent))
    except (TypeError, ValueError) as error:
        raise FolderError(f"{path} isn't a LoraConfig that this peft knows: {error}") from error


def _read_sites(path: Path, names: list[str], config: LoraConfig) -> dict[str, LoraSite]:
    """The LoRA parts in a weights file, which must have just these sites, at the config's ranks."""
    check_config(config)
    sites = {}
    for name, (a, b) in layout.site_tensors(path, names).items():
        rank, scale = rank_and_scale(config, name)
        if a.shape[0] != rank:
            raise FolderError(f"{path}: the rank at {name} is {a.shape[0]}, not {rank}.")
        parts = torch.from_numpy(a), torch.from_numpy(b)
        sites[name] = LoraSite(*parts, scale, config.lora_dropout)
    return sites


def _array(parameter: Tensor) -> Any:
    return parameter.detach().float().cpu().contiguous().numpy()
