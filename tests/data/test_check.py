import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptx.data.check import SHOWN, Measure, check
from adaptx.data.streams import STREAMS, Columns
from adaptx.errors import DataError, OptionError
from tests.data.files import seeded, write


def problems(report):
    return [(problem.lines, problem.message) for problem in report.problems]


def test_every_bad_row_is_found_with_its_line(tmp_path):
    rows = [
        *('{"text": "a", "label": "x"}', "{", '{"text": "", "label": "x"}'),
        *('{"text": "b"}', "", "[1]", '{"text": "c", "label": "y"}', b"\xff".decode("latin-1")),
    ]
    content = "\n".join(rows[:-1]).encode() + b"\n\xff\n"
    report = check(write(tmp_path / "a.jsonl", content), "classification")
    assert (report.rows, report.bad_rows, report.clean) == (7, 5, False)
    assert [lines for lines, _ in problems(report)] == [[2], [3], [4], [6], [8]]
    said = ["isn't JSON", "is empty", "looks like the label", "JSON list", "isn't UTF-8"]
    assert all(a in b for a, (_, b) in zip(said, problems(report), strict=True))
    assert report.labels == {"x": 1, "y": 1}


@pytest.mark.parametrize(("name", "separator"), [("a.tsv", "\t"), ("a.csv", ",")])
def test_bad_rows_of_tables_with_a_header_are_found(tmp_path, name, separator):
    content = "text,label\na,x\nb\n\nc,\n,x\nd,y,z\n".replace(",", separator).encode() + b"\xe9"
    content += f"{separator}x\ne{separator}x\n".encode()
    report = check(write(tmp_path / name, content), "classification")
    assert (report.rows, report.bad_rows) == (7, 5)
    assert sorted(line for lines, _ in problems(report) for line in lines) == [3, 5, 6, 7, 8]


def test_a_csv_that_cannot_be_read_on_says_so(tmp_path):
    report = check(write(tmp_path / "a.csv", 'text,label\na,x\n"b,x\nc,x\n'), "classification")
    assert (report.rows, report.bad_rows) == (2, 1)
    assert problems(report)[0][0] == [3]
    assert "The rest of the file wasn't read" in problems(report)[0][1]


def test_one_problem_of_many_rows_is_told_once(tmp_path):
    content = "text\tlabel\n" + "a\n" * 25
    report = check(write(tmp_path / "a.tsv", content), "classification")
    (problem,) = report.problems
    assert (problem.count, problem.lines) == (25, list(range(2, 2 + SHOWN)))


def test_more_problems_than_are_shown_are_counted(tmp_path):
    content = "text\tlabel\n" + "".join("a\t" * i + "a\n" for i in range(2, 32))
    report = check(write(tmp_path / "a.tsv", content), "classification")
    assert (len(report.problems), report.bad_rows) == (SHOWN, 30)


def test_labels_are_counted_and_unknown_ones_are_bad_rows(tmp_path):
    path = write(tmp_path / "a.tsv", "text\tlabel\na\tx\nb\ty\nc\tx\nd\tz\n")
    assert check(path, "classification").labels == {"x": 2, "y": 1, "z": 1}
    report = check(path, "classification", labels=["x", "y"])
    assert problems(report) == [([5], "unknown label z; allowed: x, y.")]
    assert report.labels == {"x": 2, "y": 1}


def test_duplicates_are_told_apart(tmp_path):
    lines = ["Adé lọ\tx", "b\tx", "Adé lọ\tx", "ADÉ  LỌ\ty", "Ade\u0301 lọ\tx", "Ade\u0301 lọ\tx"]
    path = write(tmp_path / "a.tsv", "text\tlabel\n" + "\n".join(lines))
    same = check(path, "classification").duplicates
    assert (same.exact, same.normalized, same.contradicting) == (2, 2, 1)
    assert same.places == [(2, 4), (2, 5), (2, 6), (2, 7)]


def test_leaks_and_labels_that_train_lacks_are_told(tmp_path):
    train = write(tmp_path / "train.tsv", "text\tlabel\na\tx\nb c\ty\n")
    test = write(tmp_path / "test.tsv", "text\tlabel\nd\tx\nB  C\ty\na\ty\ne\tz\nf\n")
    report = check(train, "classification", against=[test, train])
    leak, itself = report.leaks
    assert (leak.path, leak.rows, leak.bad_rows) == (str(test), 5, 1)
    assert (leak.same.exact, leak.same.normalized, leak.same.contradicting) == (1, 1, 1)
    assert leak.same.places == [(3, 3), (2, 4)]
    assert leak.unseen_labels == ["z"]
    assert itself.same.exact == 2
    assert report.bad_rows == 0 and not report.clean


def test_lengths_are_those_of_the_measure(tmp_path):
    texts = ["a" * n for n in range(1, 101)]
    path = write(tmp_path / "a.tsv", "text\tlabel\n" + "".join(f"{t}\tx\n" for t in texts))
    found = check(path, "classification").lengths["text"]
    assert (found.min, found.median, found.p95, found.max, found.truncated) == (
        1,
        50,
        95,
        100,
        None,
    )
    tens = Measure(lambda texts: [len(text) * 10 for text in texts], "tens", limit=900)
    report = check(path, "classification", measure=tens)
    assert (report.unit, report.lengths["text"].max) == ("tens", 1000)
    assert report.lengths["text"].truncated == pytest.approx(0.1)


def test_entities_are_counted_as_seqeval_counts_them(tmp_path):
    from seqeval.metrics.sequence_labeling import get_entities

    tags = ["I-PER", "I-PER", "O", "B-LOC", "I-LOC", "I-ORG", "B-ORG", "O", "I-LOC", "B-PER"]
    path = write(tmp_path / "a.conll", "".join(f"w{i} {tag}\n" for i, tag in enumerate(tags)))
    report = check(path, "token-classification")
    kinds = [kind for kind, _, _ in get_entities(tags)]
    assert report.entities == {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    assert report.entities_begun_inside == 3
    assert report.labels["I-PER"] == 2
    assert report.clean


tags = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])


@seeded
@given(st.lists(st.lists(tags, min_size=1), min_size=1))
def test_entities_of_any_tags_are_counted_as_seqeval_counts_them(tmp_path_factory, sentences):
    from seqeval.metrics.sequence_labeling import get_entities

    path = tmp_path_factory.getbasetemp() / "tags.conll"
    write(path, "\n".join("".join(f"w {tag}\n" for tag in sentence) for sentence in sentences))
    kinds = [kind for sentence in sentences for kind, _, _ in get_entities(sentence)]
    found = check(path, "token-classification").entities
    assert found == {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def test_bad_sentences_are_left_out_and_each_bad_line_is_told(tmp_path):
    content = "a O\nb\nc O\nd\n\ne B-PER\n\nf\n"
    report = check(write(tmp_path / "a.conll", content), "token-classification")
    assert [lines for lines, _ in problems(report)] == [[2], [4], [8]]
    assert (report.labels, report.entities) == ({"B-PER": 1}, {"PER": 1})


def test_unknown_tags_are_told_once_with_the_lines_of_their_words(tmp_path):
    path = write(tmp_path / "a.conll", "a O\nb PER\n\nc O\nd O\ne PER\n")
    report = check(path, "token-classification", labels=["O"])
    assert problems(report) == [([2, 6], "unknown label PER; allowed: O.")]


def test_bad_questions_are_told_by_their_id(tmp_path):
    def question(id_, start):
        answers = [{"text": "Dodoma", "answer_start": start}]
        return {"id": id_, "question": "Wapi " + id_, "answers": answers}

    questions = [question("q1", 0), question("q2", 5), question("q3", 0), question("q1", 0)]
    value = {"data": [{"paragraphs": [{"context": "Dodoma ni mji", "qas": questions}]}]}
    report = check(write(tmp_path / "a.json", json.dumps(value)), "question-answering")
    assert (report.rows, report.bad_rows) == (4, 2)
    assert ["q2" in problems(report)[0][1], "'q1' stands twice" in problems(report)[1][1]] == [
        True
    ] * 2
    assert report.labels == {"answered": 2}
    assert report.lengths.keys() == {"question", "context"}


def test_pairs_of_two_files_are_checked(tmp_path):
    write(tmp_path / "a.sw", "a\n\nc\nd\na\n")
    write(tmp_path / "a.en", "x\ny\n\nw\nx\nz\n")
    report = check(f"{tmp_path}/a.sw,{tmp_path}/a.en", "pairs", Columns(labelled=False))
    assert (report.rows, report.bad_rows) == (6, 3)
    assert report.duplicates.exact == 1
    assert "has 5 lines" in problems(report)[-1][1]


def test_a_report_is_json(tmp_path):
    path = write(tmp_path / "a.tsv", "text\tlabel\na\tx\na\ty\n")
    value = json.loads(json.dumps(check(path, "classification", against=[path]).to_json()))
    assert value["clean"] is True
    assert value["duplicates"] == {
        "exact": 1, "normalized": 0, "contradicting": 1, "places": [[2, 3]]
    }  # fmt: skip
    assert value["leaks"][0]["same"]["exact"] == 2


@pytest.mark.parametrize("task", STREAMS)
def test_what_cannot_be_read_at_all_is_refused(tmp_path, task):
    with pytest.raises(DataError, match="no such file"):
        check(tmp_path / "none.jsonl", task)
    with pytest.raises(DataError, match="the file has no rows"):
        check(write(tmp_path / "a.jsonl", "\n"), task)
    with pytest.raises(DataError, match="gzip stream is damaged"):
        check(_plain(tmp_path), task)


def _plain(folder):
    path = folder / "plain.jsonl.gz"
    path.write_text('{"text": "a"}')
    return path


def test_a_task_that_is_none_lists_the_tasks(tmp_path):
    with pytest.raises(OptionError, match="none of classification, token-classification"):
        check(tmp_path / "a.jsonl", "ner")
