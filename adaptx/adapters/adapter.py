"""An adapter: learnt arrays at the sites of one encoder, and usually a head. One folder on disk.

Dimensions: B rows, S tokens, H hidden width, L labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from adaptx.adapters import folder as layout
from adaptx.adapters import own_model
from adaptx.adapters.bank import Bank
from adaptx.adapters.finding import find_folder
from adaptx.adapters.head import Head
from adaptx.adapters.lora import LoraSite, check_config, init_sites, unexpressed
from adaptx.adapters.own_model import Full
from adaptx.adapters.peft_config import resolved
from adaptx.data.encode import TextEncoder
from adaptx.data.windows import Input, Window, whole
from adaptx.encoder.encoder import Encoder, mean_pool
from adaptx.errors import FingerprintError, FolderError, OptionError
from adaptx.tasks import Task
from adaptx.tasks.base import TOKENS, no_answers

if TYPE_CHECKING:
    from peft import PeftConfig


class Adapter(nn.Module):
    """Learnt arrays at sites, and the head of a task; belongs to one encoder.

    sites         LoraSite by module path: what a bank stacks; empty for any other method
    model         its own model (see adaptx.adapters.own_model), or None
    head          Head(H, L), or None without a task
    facts         what adaptx.json says: name, encoder and its fingerprint, task, language …
    config        the PEFT configuration, target_modules resolved to full names; Full(); None for a
                  probe
    """

    def __init__(
        self,
        facts: layout.Facts,
        config: PeftConfig | Full | None,
        head: Head | None,
        task: Task | None,
        *,
        sites: Mapping[str, LoraSite] | None = None,
        model: nn.Module | None = None,
        own: frozenset[str] = frozenset(),
        source: Path | None = None,
    ):
        super().__init__()
        self.facts, self.config, self.task, self.head = facts, config, task, head
        self.sites, self.model = dict(sites or {}), model
        self._own = own  # of the model's tensors, by name: those that aren't the encoder's
        self.source = source  # a folder with the tokenizer, which goes with a whole model
        for name, site in self.sites.items():
            self.add_module(name.replace(".", "/"), site)

    @classmethod
    def new(
        cls,
        encoder: Encoder,
        task: Task | None,
        config: PeftConfig | Full | None,
        *,
        name: str,
        language: str | None = None,
        max_length: int | None = None,
        seed: int = 0,
    ) -> Adapter:
        """A fresh adapter. `config` says what it changes: a peft.LoraConfig that a bank expresses,
        any other of PEFT's configurations, Full() for everything, None for a probe, a head alone.

        Raises SiteError for a target that matches nothing, OptionError for a configuration, or a
        task on this encoder, that can't be.
        """
        if task is not None:
            task.check_width(encoder.hidden_size)
        generator = torch.Generator().manual_seed(seed)
        head = None
        if task is not None and task.has_head:
            head = Head(encoder.hidden_size, task.outputs or encoder.table.shape[1])
            nn.init.normal_(head.weight, std=0.02, generator=generator)
            nn.init.zeros_(head.bias)
        facts = layout.Facts(
            name=layout.check_name(name),
            method="probe",
            encoder=encoder.name,
            fingerprint=encoder.fingerprint,
            prefix=encoder.prefix,
            max_length=max_length,
            language=language,
            task=task.to_json() if task else None,
        )
        made = cls.of(encoder, facts, config, head, task, seed=seed)
        return made.to(encoder.device)

    @classmethod
    def of(
        cls,
        encoder: Encoder,
        facts: layout.Facts,
        config: PeftConfig | Full | None,
        head: Head | None,
        task: Task | None,
        *,
        sites: Mapping[str, LoraSite] | None = None,
        model: nn.Module | None = None,
        seed: int = 0,
    ) -> Adapter:
        """An adapter whose facts say its method; without `sites` or `model`, with fresh ones."""
        from peft import LoraConfig, PeftConfig

        if config is None:
            return cls(replace(facts, method="probe"), None, head, task)
        if type(config) is LoraConfig:  # AdaLoraConfig is one too
            check_config(config)
            if not unexpressed(config):
                if sites is None:
                    model_type = encoder.config.model_type
                    generator = torch.Generator().manual_seed(seed)
                    sites = init_sites(config, encoder.sites, model_type, generator)
                config = resolved(config, list(sites), encoder.name)
                scales = {site: part.scale for site, part in sites.items()}
                facts = replace(facts, method="lora", scales=scales)
                return cls(facts, config, head, task, sites=sites)
        if isinstance(config, Full):
            model = model or own_model.full_model(encoder, config)
            method = "full"
        elif isinstance(config, PeftConfig):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = model or own_model.peft_model(encoder, config)
            config, method = model.peft_config["default"], own_model.method_name(config)
        else:
            raise OptionError(
                f"config is a {type(config).__name__}; a peft.LoraConfig or another of PEFT's "
                f"configurations, adaptx.Full() or None (a probe) is needed."
            )
        own = own_model.own_names(model, encoder)
        facts = replace(facts, method=method)
        return cls(facts, config, head, task, model=model, own=own, source=encoder.folder)

    def __repr__(self) -> str:
        where = f"{len(self.sites)} sites" if self.sites else self.facts.way
        return (
            f"Adapter({self.name!r}, {self.facts.method}, {where}, "
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
        """How many weights the adapter has, its head included, the encoder's not."""
        return sum(tensor.numel() for tensor in self.weights().values())

    def weights(self) -> dict[str, Tensor]:
        """The adapter's own tensors by name: what training changes and a folder keeps."""
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if not name.startswith("model.") or name.removeprefix("model.") in self._own
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Adapter:
        """What .to() and its kin go through: the frozen tensors of its model are the encoder's."""
        model, self._modules["model"] = self.model, None
        super()._apply(fn, recurse)
        self._modules["model"] = model
        for name, module in model.named_modules() if model is not None else ():
            for kind in (module._parameters, module._buffers):
                for leaf, tensor in kind.items():
                    if tensor is None:
                        continue
                    if isinstance(tensor, nn.Parameter):
                        if f"{name}.{leaf}".lstrip(".") in self._own:
                            tensor.data = fn(tensor.data)
                    else:  # the encoder moves its buffers by putting others in their place
                        kind[leaf] = fn(tensor)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Adapter:
        """Let the adapter's own parameters train, or not."""
        own = self.weights().keys()
        for name, parameter in self.named_parameters():
            if name in own:
                parameter.requires_grad_(requires_grad)
        return self

    def trainable(self) -> list[nn.Parameter]:
        """What an optimizer takes: the adapter's parameters, less what its method keeps fixed."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

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

    def check_answers(self) -> None:
        """Raise OptionError for an adapter whose task is for training alone."""
        if self.task is not None and not self.task.answers:
            raise OptionError(no_answers(self.name, self.task))

    def check_shapes(self, encoder: Encoder) -> None:
        """Raise FolderError unless the sites and the head have the encoder's widths."""
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

    def hidden(
        self, encoder: Encoder, input_ids: Tensor, mask: Tensor, *, fused: bool = True
    ) -> Tensor:
        """Token states of the encoder with this adapter alone: `[B, S]` -> `[B, S, H]`.

        In train() mode with the adapter's dropout. `fused` as in Route.
        """
        if self.model is not None:
            return encoder.hidden(input_ids, mask, own=self.model)
        bank = Bank.of([self], encoder)
        route = bank.route([1], training=self.training, fused=fused) if bank.sites else None
        return encoder.hidden(input_ids, mask, route)

    @property
    def pooling(self) -> str:
        """What the head reads of the token states: "mean", "cls", or "tokens", all of them."""
        return self.task.pooling if self.task is not None else "mean"

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """What the head reads: `[B, S, H]`, `[B, S]` -> `[B, H]`, or `[B, S, H]` for "tokens"."""
        if self.pooling == TOKENS:
            return hidden
        return hidden[:, 0] if self.pooling == "cls" else mean_pool(hidden, mask)

    def outputs(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """The head on pooled states: `[B, S, H]`, `[B, S]` -> fp32 `[B, L]`, or `[B, S, L]`.

        Without a head, the pooled states themselves.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            pooled = self.pool(hidden.float(), mask)
            return pooled if self.head is None else self.head(pooled)

    def windows(
        self, text: TextEncoder, inputs: Sequence[Input], max_length: int | None = None
    ) -> list[list[Window]]:
        """How the adapter's task reads each input: in one window, or in several."""
        limits = [limit for limit in (self.max_length, max_length) if limit is not None]
        limit = min(limits) if limits else None
        if self.task is None:
            return [[window] for window in whole(text, self.prefix, inputs, limit)]
        return self.task.windows(text, self.prefix, inputs, limit)

    def answer(self, one: Input, windows: Sequence[Window], outputs: Sequence[np.ndarray]) -> Any:
        """The task's answer to an input, from the outputs of its windows; without a task a vector,
        fp32 `[H]`.
        """
        return self.task.answer(one, windows, outputs) if self.task is not None else outputs[0]

    def is_finite(self) -> bool:
        """Whether all its weights are finite, and what merging would add to the encoder's too."""
        own = all(bool(weight.isfinite().all()) for weight in self.weights().values())
        return own and all(site.is_finite() for site in self.sites.values())

    def deltas(self) -> dict[str, Tensor]:
        """What merging adds to the weight `[out, in]` of each site of a bank."""
        return {name: site.delta().detach() for name, site in self.sites.items()}

    def merged_model(self, encoder: Encoder) -> nn.Module:
        """A plain AutoModel with the adapter folded into its weights.

        Raises OptionError for a method whose change weights can't express.
        """
        if self.model is not None:
            return own_model.merged(self.model, self.facts.method)
        return encoder.merged_model(self.deltas())

    def with_training(self, training: Mapping[str, Any]) -> Adapter:
        """Record facts of the training (settings, data, scores); returns the adapter itself."""
        self.facts = replace(self.facts, training=dict(training))
        return self

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the adapter's folder, whole or not at all (see adaptx.adapters.folder)."""
        from adaptx.adapters.saved import write

        return write(self, Path(folder), overwrite=overwrite)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        encoder: Encoder | None = None,
        *,
        labels: Sequence[str] | None = None,
    ) -> Adapter:
        """Open an adapter's folder, every file checked against its sha256.

        With `encoder`, the adapter is checked to belong to it and put on its device; one that
        brings its own model needs it. A folder that PEFT wrote says nothing of its encoder and its
        labels: it needs `encoder`, is taken to belong to it, and `labels` may name them (see
        adaptx.adapters.peft_folder). Raises FolderError or FingerprintError.
        """
        from adaptx.adapters.saved import read

        return read(Path(folder), encoder, labels)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, encoder: Encoder | None = None, revision: str | None = None
    ) -> Adapter:
        """Open an adapter by its folder, or by `user/name[@revision]` on the Hub.

        Only JSON and safetensors are downloaded, once, into the Hub's cache. Raises HubError for
        a repository that can't be read, and what `load` raises.
        """
        return cls.load(find_folder(name, revision), encoder)
