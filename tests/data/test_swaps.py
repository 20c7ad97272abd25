"""Sets of terms from files, and terms that change places in texts."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptx.data.swaps import check_swaps, pairs_of, read_swaps, swapper
from adaptx.errors import DataError

NAMES = ("Asha", "John", "Mohammed", "Ṣadé", "राम", "Ўткир")
LETTERS = st.characters(categories=["L", "M", "N"])
# What stands around a term: nothing of it can make another term.
BETWEEN = st.lists(
    st.sampled_from([" ", ", ", ".", "-", "'", "“", "\n", " na ", " zuri ", "(", "😀"]), min_size=1
).map("".join)


@settings(deadline=None)  # the first call lists Unicode's marks
@given(st.data())
def test_swapping_changes_every_term_and_twice_gives_the_text_back(data):
    one, other, *_ = data.draw(st.permutations(NAMES))
    swap = swapper((one, other))
    pieces, wanted = "", ""
    for _ in range(data.draw(st.integers(1, 5))):
        between = data.draw(BETWEEN)
        # Where one of the two has no case, the other's can't come back.
        cases = [str, str.upper, str.lower] if "राम" not in (one, other) else [str]
        case = data.draw(st.sampled_from(cases))
        term = data.draw(st.sampled_from([one, other, "Fatuma"]))
        partner = {one: other, other: one}.get(term, term)
        pieces += between + case(term)
        wanted += between + case(partner)
    assert swap(pieces) == wanted
    assert swap(wanted) == pieces


@settings(deadline=None)
@given(LETTERS, st.sampled_from(NAMES), st.booleans())
def test_a_term_inside_another_word_stays(letter, term, before):
    word = letter + term if before else term + letter
    text = f"habari za {word} leo"
    assert swapper((term, "Neema"))(text) == text


def test_cases_and_forms_are_kept():
    swap = swapper(("he", "she"))
    assert swap("He said she, HE. The hero; She-he") == "She said he, SHE. The hero; He-she"
    assert swapper(("Asha", "John"))("asha JOHN aSHA") == "john ASHA aSHA"
    composed, apart = "Ad\u00e9", "Ade\u0301"
    swap = swapper((composed, "Tunde"))
    assert swap(f"{composed} {apart}") == "Tunde Tunde"
    assert swapper(("New York", "York"))("New York, York") == "York, New York"
    assert swapper(("a.b", "c"))("a.b axb c") == "c axb a.b"
    assert swapper(("कमल", "राम"))("कमला कमल") == "कमला राम"
    assert swapper(("他", "她"))("我们看见他了") == "我们看见她了"


@pytest.mark.parametrize(
    ("words", "swapped"),
    [
        (["600 000", "watu", "na", "Asha"], ["600 000", "watu", "na", "New", "York"]),
        (["New", "York", "ni", "mji", "wa  leo"], ["Asha", "ni", "mji", "wa  leo"]),
        (["New York", "ni"], ["Asha", "ni"]),
        (["(Asha)", "Asha-Asha"], ["(New", "York)", "New", "York-New", "York"]),
        (["600 000", "watu"], ["600 000", "watu"]),
        (["", "a "], ["", "a "]),
        ([], []),
    ],
)
def test_words_without_a_term_stay_as_they_are(words, swapped):
    swap = swapper(("Asha", "New York"))
    assert swap.words(words) == swapped
    assert " ".join(swapped) == swap(" ".join(words))


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_files_of_both_kinds_say_the_same(tmp_path):
    tsv = write(tmp_path / "a.tsv", "Asha\tJohn \tMohammed\n\nyeye\twao\n")
    wanted = [("Asha", "John", "Mohammed"), ("yeye", "wao")]
    assert read_swaps(tsv) == wanted
    assert read_swaps(write(tmp_path / "a.json", json.dumps(wanted))) == wanted
    assert pairs_of(wanted)[:3] == [("Asha", "John"), ("Asha", "Mohammed"), ("John", "Mohammed")]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.tsv", "Asha\tJohn\n\nMohammed\n", "a.tsv, line 3: there is one term, 'Mohammed'"),
        ("a.tsv", "Asha\t\n", "line 1: a term is empty"),
        ("a.tsv", "Asha\tJohn\nasha\tNeema\n", "line 2: the term 'asha' stands twice"),
        ("a.tsv", "\n\n", "the file has no terms"),
        ("a.tsv", "", "the file has no terms"),
        ("a.json", "", "the file has no terms"),
        ("a.json", '[["Asha", "John"], ["Neema"]]', "line 2: there is one term"),
        ("a.json", '[["Asha", 1]]', "aren't all texts"),
        ("a.json", '{"a": 1}', "a list of lists is needed"),
        ("a.json", "[", "isn't JSON"),
        ("a.txt", "Asha\tJohn", ".tsv or .json"),
    ],
)
def test_bad_files_are_refused_with_their_line(tmp_path, name, text, said):
    with pytest.raises(DataError) as raised:
        read_swaps(write(tmp_path / name, text))
    assert said in str(raised.value)
    assert str(tmp_path / name) in str(raised.value)


def test_sets_in_python_are_checked_too():
    assert check_swaps([["Asha ", "John"]]) == [("Asha", "John")]
    with pytest.raises(DataError, match="the terms, line 1: there is one term"):
        check_swaps([["Asha"]])
    with pytest.raises(DataError, match="no such file"):
        read_swaps("absent.tsv")
