"""Slots of the live bank: where adapters go, and what onnxruntime reads."""

import numpy as np
import pytest

from adaptx.errors import FolderError
from adaptx.runtime.bank import LEAST_RANK, LiveBank
from adaptx.runtime.layout import BankSpec, Part

SPECS = (
    BankSpec("qv.a", (Part("q", "a"), Part("v", "a")), 6),
    BankSpec("q.b", (Part("q", "b"),), 5),
    BankSpec("v.b", (Part("v", "b"),), 4),
)


def part(rank, outputs, value=1.0):
    return np.full((rank, 6), value, np.float32), np.full((outputs, rank), value, np.float32)


@pytest.mark.parametrize(
    ("rank", "width"), [(1, 4), (3, 4), (4, 4), (5, 8), (8, 8), (9, 16), (20, 32), (64, 64)]
)
def test_an_adapter_goes_into_a_chunk_of_its_rank(rank, width):
    bank = LiveBank(SPECS, "float32", 2)
    place = bank.take(rank)
    shapes = {name: array.shape for name, array in place.chunk.arrays.items()}
    assert shapes == {"qv.a": (3, 2 * width, 6), "q.b": (3, width, 5), "v.b": (3, width, 4)}
    assert place.chunk.slot_bytes == 4 * width * (2 * 6 + 5 + 4)


def test_slots_are_taken_in_order_and_a_full_chunk_gets_a_second():
    bank = LiveBank(SPECS, "float32", 2)
    places = [bank.take(rank) for rank in (3, 8, 4, 2)]
    assert [(bank.chunks.index(p.chunk), p.slot) for p in places] == [
        (0, 1),
        (1, 1),
        (0, 2),
        (2, 1),
    ]
    bank.give_back(places[0])
    again = bank.take(1)
    assert (again.chunk, again.slot) == (bank.chunks[0], 1)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_written_slot_is_read_at_once_and_no_other_changes(dtype):
    bank = LiveBank(SPECS, dtype, 2)
    rows = bank.rows({"v": part(3, 4, 0.5)}, {"v": 2.0}, 3)
    place = bank.take(3)
    values = place.chunk.values  # bound before the slot was filled
    bank.write(place, rows)
    for name, array in place.chunk.arrays.items():
        assert np.array_equal(values[name].numpy(), array)
        assert array.dtype == dtype and not array[0].any() and not array[2].any()
    held = place.chunk.arrays
    assert (held["v.b"][1, :3] == 1.0).all() and not held["v.b"][1, 3:].any()
    assert (held["qv.a"][1, 4:7] == 0.5).all() and np.count_nonzero(held["qv.a"]) == 3 * 6
    assert not held["q.b"].any()


def test_a_slot_that_is_filled_anew_keeps_nothing_of_the_one_before():
    bank = LiveBank(SPECS, "float32", 1)
    place = bank.take(4)
    bank.write(place, bank.rows({"q": part(4, 5), "v": part(4, 4)}, {"q": 1.0, "v": 1.0}, 4))
    bank.give_back(place)
    again = bank.take(1)
    assert again == place
    bank.write(again, bank.rows({"q": part(1, 5)}, {"q": 1.0}, 1))
    assert np.count_nonzero(again.chunk.arrays["qv.a"]) == 6
    assert np.count_nonzero(again.chunk.arrays["q.b"]) == 5
    assert not again.chunk.arrays["v.b"].any()


def test_what_is_beyond_half_precision_is_refused():
    large = {"q": part(2, 5, 300.0)}
    with pytest.raises(FolderError, match=r"at q that are beyond float16.*--bank fp32"):
        LiveBank(SPECS, "float16", 1).rows(large, {"q": 1000.0}, 2)
    LiveBank(SPECS, "float32", 1).rows(large, {"q": 1000.0}, 2)
    with np.errstate(over="ignore"), pytest.raises(FolderError, match="beyond float32"):
        LiveBank(SPECS, "float32", 1).rows(large, {"q": 1e38}, 2)


def test_rows_without_an_adapter_have_a_chunk_of_nothing():
    nothing = LiveBank(SPECS, "float16", 2).nothing
    assert nothing.arrays["qv.a"].shape == (1, 2 * LEAST_RANK, 6)
    assert not any(array.any() for array in nothing.arrays.values()) and not nothing.free
