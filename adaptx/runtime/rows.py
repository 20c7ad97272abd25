"""One adapter's rows of the banks. R rank, I and O a site's widths; NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from adaptx.errors import FolderError, choices
from adaptx.runtime.layout import BankSpec


def bank_rows(
    banks: Sequence[BankSpec],
    sites: Mapping[str, tuple[np.ndarray, np.ndarray]],
    scales: Mapping[str, float],
    rank: int,
) -> dict[str, np.ndarray]:
    """Each bank's fp32 `[parts * rank, width]` of an adapter with A `[R, I]`, B `[O, R]` by site.

    Smaller ranks and absent sites are zeros, which is exact; the scale is folded into B. Raises
    FolderError, naming the site, for one that no bank has, and for widths or ranks that don't fit.
    """
    known = {part.site for bank in banks for part in bank.parts}
    if missing := [site for site in sites if site not in known]:
        raise FolderError(
            f"The adapter attaches at {choices(missing)}, where the graph has no bank: export the "
            f"bundle again with this adapter among those that `adaptx export` is given, or with "
            f"--sites all."
        )
    found = {}
    for bank in banks:
        rows = np.zeros((len(bank.parts) * rank, bank.width), np.float32)
        for place, (site, kind) in enumerate(bank.parts):
            if site not in sites:
                continue
            a_RI, b_OR = sites[site]
            part = a_RI if kind == "a" else b_OR.T * np.float32(scales[site])
            if part.shape[1] != bank.width or part.shape[0] > rank:
                raise FolderError(
                    f"At {site}, {kind.upper()} is {list(part.shape)}; the "
                    f"graph takes at most {rank} x {bank.width}."
                )
            rows[place * rank : place * rank + len(part)] = part
        found[bank.name] = rows
    return found
