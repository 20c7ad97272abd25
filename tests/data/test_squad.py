import copy
import json

import pytest
from hypothesis import given

from adaptx.data.read import read_passages
from tests.data.files import no_nul, refusal, seeded, write

CONTEXT = "Mji mkuu wa Tanzania ni Dodoma. Zamani ulikuwa Dar es Salaam. Dodoma ni kati."


def question(id_, *answers):
    return {
        "id": id_,
        "question": "Mji mkuu ni upi?",
        "answers": [{"text": text, "answer_start": start} for text, start in answers],
    }


def squad(*questions, context=CONTEXT):
    return {
        "version": "1.1",
        "data": [{"paragraphs": [{"context": context, "qas": list(questions)}]}],
    }


def written(path, value):
    return write(path, value if isinstance(value, (str, bytes)) else json.dumps(value))


def row(**changed):
    answers = {"text": ["Dodoma"], "answer_start": [24]}
    value = {"id": "q", "question": "Wapi?", "context": CONTEXT, "answers": answers}
    return json.dumps({**value, **changed})


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_questions_are_read_with_all_their_answers(tmp_path, name):
    value = squad(question("q1", ("Dodoma", 24), ("Dodoma", 62)), question("q2"))
    first, second = read_passages(written(tmp_path / name, value))
    assert (first.id, first.question, first.context) == ("q1", "Mji mkuu ni upi?", CONTEXT)
    assert first.answers == (("Dodoma", 24), ("Dodoma", 62))
    assert (second.id, second.answers) == ("q2", ())


def test_starts_count_characters_not_bytes(tmp_path):
    context = "Ìbàdàn 👑 ni mji."
    value = squad(question("q", ("ni mji", 9)), context=context)
    (found,) = read_passages(written(tmp_path / "a.json", value))
    assert found.answers == (("ni mji", 9),)


def test_a_table_laid_out_like_squad_gives_the_same(tmp_path):
    (found,) = read_passages(written(tmp_path / "a.jsonl", row()))
    assert (found.id, found.answers, found.line) == ("q", (("Dodoma", 24),), 1)


@seeded
@given(no_nul.filter(str.strip), no_nul.filter(str.strip), no_nul)
def test_any_answer_is_found_where_it_stands(tmp_path_factory, before, answer, after):
    path = tmp_path_factory.mktemp("squad") / "a.json"
    value = squad(question("q", (answer, len(before))), context=before + answer + after)
    (found,) = read_passages(written(path, value))
    assert found.answers == ((answer, len(before)),)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (25, "isn't at its answer_start 25, where the passage has 'odoma.'; it stands at 24, 62"),
        (-1, "isn't at its answer_start -1"),
        (10_000, "where the passage has ''"),
    ],
)
def test_an_answer_at_another_place_says_where_it_stands(tmp_path, start, said):
    value = squad(question("q1", ("Dodoma", 24)), question("q2", ("Dodoma", start)))
    message = refusal(read_passages, written(tmp_path / "a.json", value), None)
    assert "question 'q2': the answer 'Dodoma'" in message and said in message
    assert "characters, not bytes" in message


def test_an_answer_that_stands_nowhere_says_so(tmp_path):
    value = squad(question("q1", ("Arusha", 24)))
    message = refusal(read_passages, written(tmp_path / "a.json", value), None)
    assert "question 'q1': the answer 'Arusha'" in message
    assert "it stands nowhere in the passage" in message


def changed(path, new):
    """SQuAD's JSON with one value replaced, or left out."""
    value = copy.deepcopy(squad(question("q1", ("Dodoma", 24))))
    inner = value
    for step in path[:-1]:
        inner = inner[step]
    if new is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return value


PARAGRAPH = ("data", 0, "paragraphs", 0)
QUESTION = (*PARAGRAPH, "qas", 0)


@pytest.mark.parametrize(
    ("path", "new", "said"),
    [
        (("data",), None, "the file needs a list 'data', as SQuAD's JSON has it, and has version"),
        (("data",), {}, "the file needs a list 'data'"),
        (("data", 0), 7, "entry 1 of data needs a list 'paragraphs'"),
        (("data", 0, "paragraphs"), None, "entry 1 of data needs a list 'paragraphs'"),
        (PARAGRAPH, "text", "paragraph 1 of entry 1 needs a list 'qas'"),
        ((*PARAGRAPH, "qas"), None, "paragraph 1 of entry 1 needs a list 'qas'"),
        ((*PARAGRAPH, "context"), None, "question 'q1': its context is None"),
        ((*PARAGRAPH, "context"), "\ud83d", "question 'q1': its context holds a lone surrogate"),
        (QUESTION, 7, "question 1 of paragraph 1 of entry 1 has no id"),
        ((*QUESTION, "id"), None, "question 1 of paragraph 1 of entry 1 has no id"),
        ((*QUESTION, "id"), 7, "has no id (a text)"),
        ((*QUESTION, "question"), " ", "question 'q1': its question is ' '"),
        ((*QUESTION, "answers"), None, "question 'q1': its answers are None"),
        ((*QUESTION, "answers", 0), "Dodoma", "the answer 'Dodoma' needs a text"),
        ((*QUESTION, "answers", 0, "text"), "", "needs a text, and answer_start"),
        ((*QUESTION, "answers", 0, "answer_start"), "24", "needs a text, and answer_start"),
        ((*QUESTION, "answers", 0, "answer_start"), True, "needs a text, and answer_start"),
    ],
)
def test_json_of_another_shape_says_what_is_needed_where(tmp_path, path, new, said):
    found = refusal(read_passages, written(tmp_path / "a.json", changed(path, new)), None)
    assert said in found


def test_an_id_that_stands_twice_is_refused(tmp_path):
    value = squad(question("q1"), question("q1"))
    message = refusal(read_passages, written(tmp_path / "a.json", value), None)
    assert "the id 'q1' stands twice" in message


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000])
def test_broken_json_is_refused(tmp_path, content):
    assert "this isn't JSON" in refusal(read_passages, write(tmp_path / "a.json", content), None)


def test_what_holds_no_question_is_refused(tmp_path):
    assert "no rows" in refusal(read_passages, written(tmp_path / "a.json", squad()), None)
    assert "'data'" in refusal(read_passages, write(tmp_path / "b.json", "[]"), None)
    assert "no such file" in refusal(read_passages, tmp_path / "c.json", None)
    message = refusal(read_passages, write(tmp_path / "d.csv", ""), None)
    assert "no known format: .json, .jsonl" in message


def test_a_byte_that_is_not_utf_8_names_its_line(tmp_path):
    path = write(tmp_path / "a.json", b'{"data":\n"\xe9"}')
    assert "isn't UTF-8" in refusal(read_passages, path, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answers": []}, 'the answers must be {"text"'),
        ({"answers": {"text": ["Dodoma"]}}, 'the answers must be {"text"'),
        ({"answers": {"text": ["Dodoma"], "answer_start": []}}, "1 answer texts, and 0 values"),
        ({"answers": {"text": ["Dodoma"], "answer_start": [3]}}, "it stands at 24, 62"),
        ({"id": None}, "the row has no id"),
    ],
)
def test_a_bad_row_of_a_table_is_named(tmp_path, change, said):
    path = write(tmp_path / "a.jsonl", row(id="first") + "\n" + row(**change))
    assert said in refusal(read_passages, path, 2)


@pytest.mark.parametrize("column", ["id", "question", "context", "answers"])
def test_a_column_that_is_absent_is_named(tmp_path, column):
    value = json.loads(row())
    del value[column]
    message = refusal(read_passages, write(tmp_path / "a.jsonl", json.dumps(value)), 1)
    assert f"no column {column!r}" in message
