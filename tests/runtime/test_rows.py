import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptx.errors import FolderError
from adaptx.runtime.layout import BankSpec, Part
from adaptx.runtime.rows import bank_rows

IN, OUT = 5, 3
BANKS = [  # as a graph has them: parts of one width share a bank
    BankSpec("in", (*[Part(site, "a") for site in "qkv"], Part("o", "b")), IN),
    BankSpec("out", (Part("o", "a"), *[Part(site, "b") for site in "qkv"]), OUT),
]


def adapter(ranks, seed=0):
    """(A, B) at each site of `ranks`, and scales."""
    rng = np.random.default_rng(seed)
    sites = {}
    for site, rank in ranks.items():
        i, o = (OUT, IN) if site == "o" else (IN, OUT)
        sites[site] = (
            rng.standard_normal((rank, i), np.float32),
            rng.standard_normal((o, rank), np.float32),
        )
    return sites, {site: float(rng.uniform(0.1, 4)) for site in ranks}


@settings(max_examples=60, deadline=None)
@given(
    ranks=st.dictionaries(st.sampled_from("qkvo"), st.integers(1, 6)),
    spare=st.integers(0, 3),
    seed=st.integers(0, 2**16),
)
def test_the_products_of_the_rows_are_each_sites_update(ranks, spare, seed):
    sites, scales = adapter(ranks, seed)
    rank = max(ranks.values(), default=1) + spare
    rows = bank_rows(BANKS, sites, scales, rank)
    assert list(rows) == [bank.name for bank in BANKS]
    for bank in BANKS:
        array = rows[bank.name]
        assert array.shape == (len(bank.parts) * rank, bank.width)
        assert array.dtype == np.float32 and array.flags.c_contiguous
    held = {
        part: piece
        for bank in BANKS
        for part, piece in zip(bank.parts, np.split(rows[bank.name], len(bank.parts)), strict=True)
    }
    rng = np.random.default_rng(seed + 1)
    for site in "qkvo":
        a_piece, b_piece = held[site, "a"], held[site, "b"]
        x = rng.standard_normal((7, a_piece.shape[1]), np.float32)
        found = x @ a_piece.T @ b_piece
        if site not in sites:
            assert not found.any()
            continue
        a, b = sites[site]
        wanted = sum(  # scale B A x, a rank at a time
            scales[site] * np.outer(x @ a[r], b[:, r]) for r in range(len(a))
        )
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_site_that_no_bank_has_is_named_with_the_remedy():
    sites, scales = adapter({"q": 2})
    sites["pooler"], scales["pooler"] = sites["q"], 1.0
    with pytest.raises(FolderError, match=r"attaches at pooler,.*export the bundle again with"):
        bank_rows(BANKS, sites, scales, 2)


@pytest.mark.parametrize("part", [0, 1])
def test_a_width_that_does_not_fit_is_refused(part):
    sites, scales = adapter({"k": 2, "o": 2})
    sites["k"] = sites["k"][:part] + sites["o"][part : part + 1] + sites["k"][part + 1 :]
    with pytest.raises(FolderError, match=rf"At k, {'AB'[part]} is .*2 x {(IN, OUT)[part]}"):
        bank_rows(BANKS, sites, scales, 2)


def test_a_rank_that_is_too_small_is_refused():
    sites, scales = adapter({"q": 2, "v": 4})
    with pytest.raises(FolderError, match=r"At v, A is \[4, 5\].* at most 3 x 5"):
        bank_rows(BANKS, sites, scales, 3)


def test_nothing_is_all_zeros_and_the_parts_are_copies():
    assert not any(rows.any() for rows in bank_rows(BANKS, {}, {}, 4).values())
    sites, scales = adapter({"q": 1})
    rows = bank_rows(BANKS, sites, scales, 1)
    before = rows["in"].copy()
    sites["q"][0][:] = 9
    assert np.array_equal(rows["in"], before)
