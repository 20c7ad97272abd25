import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptx.data.read import read_tagged
from adaptx.errors import DataError
from tests.data.files import no_nul, refusal, seeded, write

SENTENCES = [
    (("Rais", "Samia", "Suluhu"), ("O", "B-PER", "I-PER")),
    (("Adé", "lọ"), ("B-PER", "O")),
]


def found(rows):
    return [(row.tokens, row.tags) for row in rows]


def conll(sentences, separator=" "):
    return "\n".join(
        "".join(f"{token}{separator}{tag}\n" for token, tag in zip(*sentence, strict=True))
        for sentence in sentences
    )


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("ending", [".conll", ".txt", ".tsv", ".iob", ".iob2", ".bio"])
@pytest.mark.parametrize("separator", [" ", "\t"])
def test_every_ending_and_separator_gives_the_same_sentences(tmp_path, ending, gz, separator):
    path = write(tmp_path / f"a{ending}{gz}", conll(SENTENCES, separator))
    rows = read_tagged(path)
    assert found(rows) == SENTENCES
    assert [(row.path, row.line) for row in rows] == [(str(path), 1), (str(path), 5)]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.rstrip("\n"),
        lambda text: text + "\n\n\n",
        lambda text: "\n\n" + text.replace("\n\n", "\n \n\n"),
        lambda text: "-DOCSTART- -X- O\n\n" + text,
        lambda text: "# newdoc\n# text = Rais O\n#\n" + text,
    ],
)
def test_what_surrounds_sentences_is_no_part_of_them(tmp_path, change):
    path = write(tmp_path / "a.conll", change(conll(SENTENCES)))
    assert found(read_tagged(path)) == SENTENCES


def test_the_first_column_is_the_token_and_the_last_its_tag(tmp_path):
    path = write(tmp_path / "a.conll", "Rais NN B-NP O\nSamia NNP I-NP B-PER\n")
    assert found(read_tagged(path)) == [(("Rais", "Samia"), ("O", "B-PER"))]


def test_a_token_may_be_a_hash(tmp_path):
    path = write(tmp_path / "a.conll", "# O\nRais O\n# B-ORG\n\n# O\n# sent_id = 3\n")
    assert found(read_tagged(path)) == [
        (("#", "Rais", "#"), ("O", "O", "B-ORG")),
        (("#", "# sent_id ="), ("O", "3")),  # inside a sentence there are no comments
    ]


def test_a_token_may_hold_spaces_where_there_are_two_columns(tmp_path):
    path = write(tmp_path / "a.conll", "na O\n600 000 O\nNew York\tB-LOC\n")
    (row,) = read_tagged(path)
    assert row.tokens == ("na", "600 000", "New York")


def test_columns_may_be_aligned_with_spaces(tmp_path):
    path = write(tmp_path / "a.conll", "Samia  B-PER\nSuluhu I-PER \n\n600 000   O\n")
    assert found(read_tagged(path)) == [
        (("Samia", "Suluhu"), ("B-PER", "I-PER")),
        (("600 000",), ("O",)),
    ]


def test_an_entity_may_begin_with_i(tmp_path):
    path = write(tmp_path / "a.conll", "Samia I-PER\n")
    assert read_tagged(path)[0].tags == ("I-PER",)


words = st.text(st.characters(codec="utf-8", exclude_characters="\t\r\n"), min_size=1).filter(
    lambda word: word.strip() and not word.startswith(("#", "-DOCSTART-", "\ufeff"))
)
tags = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC"])


@seeded
@given(st.lists(st.lists(st.tuples(words, tags), min_size=1), min_size=1))
def test_any_tokens_survive_conll_with_tabs(tmp_path_factory, sentences):
    path = tmp_path_factory.mktemp("conll") / "a.conll"
    columns = [tuple(zip(*sentence, strict=True)) for sentence in sentences]
    write(path, conll(columns, "\t"))
    assert found(read_tagged(path)) == columns


def test_tokens_and_tags_of_a_table_are_lists(tmp_path):
    rows = '{"tokens": ["Rais", "Samia"], "tags": ["O", "B-PER"]}\n{"tokens": ["a"], "tags": [3]}\n'
    path = write(tmp_path / "a.jsonl", rows)
    assert found(read_tagged(path)) == [(("Rais", "Samia"), ("O", "B-PER")), (("a",), ("3",))]
    path = write(tmp_path / "b.jsonl", '{"w": ["a"], "t": ["O"], "tokens": ["b"], "tags": ["X"]}')
    assert found(read_tagged(path, text_column="w", label_column="t")) == [(("a",), ("O",))]


@pytest.mark.parametrize(
    ("content", "line", "said"),
    [
        ("Rais O\nSamia\n", 2, "one field, 'Samia': a token and its tag are needed"),
        ("Rais\n", 1, "one field, 'Rais'"),
        ("a X O\nb O\n", 2, "2 fields, and the lines before have 3"),
        ("a\tO\nb\t\n", 2, "the token or its tag is empty"),
        ("a\tO\n\tO\n", 2, "the token or its tag is empty"),
        (b"a O\nb\xe9 O\n", 2, "this isn't UTF-8"),
        ("", None, "the file has no rows"),
        ("\n\n# text = a\n", None, "the file has no rows"),
    ],
)
def test_a_bad_conll_line_is_named(tmp_path, content, line, said):
    assert said in refusal(read_tagged, write(tmp_path / "a.conll", content), line)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"tokens": ["a", "b"], "tags": ["O"]}', "2 tokens, and 1 tags"),
        ('{"tokens": "a b", "tags": ["O"]}', "the tokens (column 'tokens') is 'a b': a list"),
        ('{"tokens": ["a", ""], "tags": ["O", "O"]}', "number 2 of the tokens"),
        ('{"tokens": ["a"], "tags": [null]}', "number 1 of the tags (column 'tags') is None"),
        ('{"tokens": [], "tags": []}', "the row has no tokens"),
        ('{"tokens": ["\\ud83d"], "tags": ["O"]}', "lone surrogate"),
        ('{"text": "a", "tags": ["O"]}', "no column looks like the text (known names: tokens"),
        ('{"tokens": ["a"]}', "no column looks like the label (known names: tags"),
    ],
)
def test_a_bad_row_of_a_table_is_named(tmp_path, row, said):
    content = '{"tokens": ["a"], "tags": ["O"]}\n' + row + "\n"
    assert said in refusal(read_tagged, write(tmp_path / "a.jsonl", content), 2)


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a"])
def test_other_endings_list_the_known_ones(tmp_path, name):
    message = refusal(read_tagged, write(tmp_path / name, "a O\n"), None)
    assert "no known format: .conll, .txt, .tsv, .iob, .iob2, .bio, .jsonl, .ndjson" in message


def test_a_missing_file_is_named(tmp_path):
    assert "no such file" in refusal(read_tagged, tmp_path / "a.conll", None)


@seeded
@given(st.lists(no_nul, min_size=1, max_size=4))
def test_whatever_a_file_holds_it_is_read_or_refused(tmp_path_factory, lines):
    path = write(tmp_path_factory.mktemp("any") / "a.conll", "\n".join(lines))
    try:
        rows = read_tagged(path)
    except DataError:
        return
    assert all(len(row.tokens) == len(row.tags) > 0 for row in rows)
