"""LoRA: a low-rank update beside a frozen Linear (Hu et al. 2021, arXiv 2106.09685).

    y = W x + b + scale · B A dropout(x)      scale = alpha / r, or alpha / sqrt(r) (rsLoRA)

Configured by `peft.LoraConfig`, with PEFT's own matching of names, so that a config means the same
here as there. Dimensions: I site input, O site output, R rank, N slots, B rows, S tokens.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adaptx.adapters import expressed
from adaptx.adapters.lora_linear import lora_linear
from adaptx.errors import OptionError, SiteError, choices

if TYPE_CHECKING:
    from peft import LoraConfig

    from adaptx.adapters.route import Route
    from adaptx.encoder.sites import Site

KINDS: dict[str, tuple[type, ...]] = {
    "r": (int,),
    "lora_alpha": (int, float),
    "lora_dropout": (int, float),
    "use_rslora": (bool,),
    "target_modules": (str, list, set, tuple, type(None)),
    "exclude_modules": (str, list, set, tuple, type(None)),
    "layers_to_transform": (int, list, tuple, type(None)),
    "rank_pattern": (dict, type(None)),
    "alpha_pattern": (dict, type(None)),
    "modules_to_save": (list, set, tuple, type(None)),
}


class LoraSite(nn.Module):
    """One adapter's LoRA at one site: `a` fp32 `[R, I]`, `b` fp32 `[O, R]` (PEFT's orientation)."""

    def __init__(self, a: Tensor, b: Tensor, scale: float, dropout: float = 0.0):
        super().__init__()
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        self.scale, self.dropout = scale, dropout

    def delta(self) -> Tensor:
        """What merging adds to the Linear's weight: scale · B A, `[O, I]`."""
        return self.scale * (self.b @ self.a)

    @torch.no_grad()
    def is_finite(self) -> bool:
        """Whether all of `delta` are finite; it is computed only where no bound on it says so."""
        largest = (float(torch.linalg.vector_norm(one, math.inf)) for one in (self.a, self.b))
        bound = max(abs(self.scale), 1.0) * len(self.a) * math.prod(largest)
        if bound < torch.finfo(self.a.dtype).max:
            return True
        return bool(self.delta().isfinite().all())


@dataclass(frozen=True)
class LoraBank:
    """Many adapters' LoRA at one site, slot 0 zero. Smaller ranks are padded with zeros: exact.

    a_NIR   `[N, I, R]`
    b_NRO   `[N, R, O]`, with each slot's scale folded in
    dropout the dropout of each slot, or () when no slot has one
    """

    a_NIR: Tensor
    b_NRO: Tensor
    dropout: tuple[float, ...] = ()

    @classmethod
    def stack(cls, slots: Sequence[LoraSite | None], site: Site) -> LoraBank:
        """Stack the adapters' parts at a site (None where one has none) behind slot 0.

        Differentiable: the gradient of the bank flows to each adapter's own parameters.
        """
        rank = max(slot.a.shape[0] for slot in slots if slot is not None)
        weight = site.weight
        a_zero = torch.zeros((site.in_features, rank), device=weight.device)
        b_zero = torch.zeros((rank, site.out_features), device=weight.device)
        a, b, dropout = [a_zero], [b_zero], [0.0]
        for slot in slots:
            dropout.append(0.0 if slot is None else slot.dropout)
            if slot is None:
                a.append(a_zero)
                b.append(b_zero)
            else:  # an adapter loaded before the encoder was moved to a GPU follows it here
                pad = rank - slot.a.shape[0]
                a_IR, b_RO = slot.a.T.to(weight.device), slot.b.T.to(weight.device) * slot.scale
                a.append(nn.functional.pad(a_IR, (0, pad)))
                b.append(nn.functional.pad(b_RO, (0, 0, 0, pad)))
        return cls(torch.stack(a), torch.stack(b), tuple(dropout) if any(dropout) else ())

    def apply(self, base: nn.Linear, x: Tensor, route: Route) -> Tensor:
        """The Linear's output + the update of each row's slots: x `[B, S, I]` -> `[B, S, O]`."""
        ids = route.adapter_ids
        drops = route.training and bool(self.dropout)
        alone = ids.shape == (1, 1) and not route.packed and not drops
        if alone and route.fused and torch.is_grad_enabled():
            return lora_linear(x, base, self.a_NIR[ids[:, 0]][0], self.b_NRO[ids[:, 0]][0])
        y = base(x)
        for position in range(ids.shape[1]):
            ids_B = ids[:, position]
            x_in = self._drop(x, ids_B, route.packed) if drops else x
            if route.packed:
                y = self._packed(x_in, y, ids_B)
            else:  # one id: `[1, I, R]` broadcasts over the batch, and nothing is gathered per row
                y = y + x_in @ self.a_NIR[ids_B] @ self.b_NRO[ids_B]
        return y

    def _packed(self, x_1TI: Tensor, y_1TO: Tensor, ids_T: Tensor) -> Tensor:
        """Tokens of one slot together: gathering `[T, I, R]` would cost T copies of the weights."""
        x_TI, y_TO = x_1TI[0], y_1TO[0]
        for slot in ids_T.unique().tolist():
            if slot:
                tokens = (ids_T == slot).nonzero()[:, 0]
                update = x_TI[tokens] @ self.a_NIR[slot] @ self.b_NRO[slot]
                y_TO = y_TO.index_add(0, tokens, update.to(y_TO.dtype))
        return y_TO.unsqueeze(0)

    def _drop(self, x: Tensor, ids: Tensor, packed: bool) -> Tensor:
        """Dropout at each row's own rate; a token's in a packed batch."""
        keep = 1 - x.new_tensor(self.dropout)[ids]
        keep = keep.view(1, -1, 1) if packed else keep.view(-1, 1, 1)
        return x * (torch.rand_like(x) < keep) / keep


def unexpressed(config: LoraConfig) -> str | None:
    """The option, such as `use_dora=True`, that a bank can't express exactly; None: it can all."""
    from peft import LoraConfig

    options = {field.name: getattr(config, field.name) for field in fields(config)}
    return expressed.unexpressed(options, vars(LoraConfig()))


def check_config(config: LoraConfig) -> None:
    """Raise OptionError for values that mean nothing."""
    for option, kinds in KINDS.items():
        value = getattr(config, option)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise OptionError(f"LoraConfig({option}={value!r}) can't be a {type(value).__name__}.")
    for pattern in (config.rank_pattern, config.alpha_pattern):
        for key, value in (pattern or {}).items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not isinstance(key, str) or not number or not _is_regex(key):
                raise OptionError(f"A pattern of LoraConfig can't have {key!r}: {value!r}.")
    numbers = [config.lora_alpha, *(config.alpha_pattern or {}).values()]
    if not all(isinstance(alpha, (int, float)) and math.isfinite(alpha) for alpha in numbers):
        raise OptionError(f"lora_alpha and alpha_pattern must be numbers, not {choices(numbers)}.")
    if not 0 <= config.lora_dropout < 1:
        raise OptionError(f"lora_dropout={config.lora_dropout} must be at least 0 and below 1.")


def _is_regex(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def targets(config: LoraConfig, sites: Iterable[str], model_type: str) -> list[str]:
    """The sites that `target_modules` names, in the encoder's order.

    "all-linear" is every site, a list holds suffixes or full names, a string is a regular
    expression, None is PEFT's default for the model. Raises SiteError where nothing matches.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    names, asked = list(sites), config.target_modules
    if isinstance(asked, str) and asked.lower() == "all-linear":
        asked = set(names)
    elif asked is None:
        asked = set(DEFAULTS.get(model_type, ()))
    try:
        found = [name for name in names if matches(config, asked, name)]
    except re.error as error:
        raise SiteError(f"target_modules={asked!r} is no regular expression: {error}.") from None
    unmatched = [] if isinstance(asked, str) else [
        target for target in sorted(asked)
        if not any(name == target or name.endswith(f".{target}") for name in names)
    ]  # fmt: skip
    if unmatched or not found:
        suffixes = sorted({re.sub(r"^.*?\.\d+\.", "", name) for name in names})
        default = f"PEFT's default for {model_type!r}" if config.target_modules is None else None
        wanted = choices(unmatched) or default or repr(config.target_modules)
        hint = " No LoRA goes to embeddings: trainable_token_indices trains single tokens' vectors."
        raise SiteError(
            f"target_modules: {wanted} matches no site of this encoder. It has {len(names)} sites; "
            f"in each layer: {choices(suffixes)}. Name suffixes, full names such as "
            f"{names[0]!r}, or 'all-linear'.{hint if 'embed' in wanted else ''}"
        )
    return found


def matches(config: Any, asked: Iterable[str] | str, module: str) -> bool:
    """Whether PEFT would put an adapter at `module` were `asked` the config's target_modules."""
    from peft.tuners.tuners_utils import check_target_module_exists

    config = copy.copy(config)
    config.target_modules = asked
    return bool(check_target_module_exists(config, module))


def rank_and_scale(config: LoraConfig, site: str) -> tuple[int, float]:
    """The rank and the scale at a site, after rank_pattern and alpha_pattern."""
    rank = int(_pattern(config.rank_pattern, site, config.r))
    alpha = float(_pattern(config.alpha_pattern, site, config.lora_alpha))
    if rank < 1:
        raise OptionError(f"The rank at {site} is {rank}; it must be at least 1.")
    return rank, alpha / (math.sqrt(rank) if config.use_rslora else rank)


def _pattern(pattern: Mapping[str, Any] | None, site: str, otherwise: Any) -> Any:
    from peft.utils.other import get_pattern_key

    pattern = pattern or {}
    return pattern.get(get_pattern_key(list(pattern), site), otherwise)


def init_sites(
    config: LoraConfig, sites: Mapping[str, Site], model_type: str, generator: torch.Generator
) -> dict[str, LoraSite]:
    """New LoRA parts, initialized as PEFT does: A Kaiming-uniform or Gaussian, B zero.

    `init_lora_weights=False` draws B too, so that tests see a LoRA that does something.
    """
    check_config(config)
    made = {}
    for name in targets(config, sites, model_type):
        rank, scale = rank_and_scale(config, name)
        a = torch.empty(rank, sites[name].in_features)
        b = torch.zeros(sites[name].out_features, rank)
        if config.init_lora_weights == "gaussian":
            nn.init.normal_(a, std=1 / rank, generator=generator)
        else:
            nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        if config.init_lora_weights is False:
            nn.init.kaiming_uniform_(b, a=math.sqrt(5), generator=generator)
        made[name] = LoraSite(a, b, scale, config.lora_dropout)
    return made
