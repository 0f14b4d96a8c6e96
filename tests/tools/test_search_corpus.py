"""From files to an index, as `elpo index` does it: every bad row is named, none stops the work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from elpo.cli import main
from elpo.commands.index import MAX_BAD_ROWS_LISTED
from elpo.tools.search_backend import Passage
from elpo.tools.search_corpus import BadRow, read_corpus
from elpo.tools.search_index import FullTextIndex


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_kind_of_file_and_every_kind_of_bad_row() -> None:
    Path("a.jsonl").write_bytes(
        b'{"id": "x", "title": "Lima", "text": "The capital."}\n'
        b"\n"
        b'"just text"\n'
        b"not json\n"
        b'{"title": "no text"}\n'
        b'["a", "list"]\n'
        b'{"text": "\xff"}\n'
        b'{"text": "\\ud800"}\n' + b"[" * 50_000 + b"\n"
        b'{"contents": "\\"Quito\\"\\nA capital."}'
    )
    Path("b.json").write_text(json.dumps([{"text": "one"}, None, {"text": ""}, "two"]))
    Path("notes.txt").write_bytes(b"\n\nFirst\nparagraph.\n \nSecond.\r\n\r\n\xff\n\nThird.")
    rows = list(read_corpus([Path("a.jsonl"), Path("b.json"), Path("notes.txt")]))
    assert [row for row in rows if isinstance(row, Passage)] == [
        Passage("x", "Lima", "The capital."),
        Passage("3", "", "just text"),
        Passage("10", "Quito", "A capital."),
        Passage("1", "", "one"),
        Passage("4", "", "two"),
        Passage("notes-1", "notes", "First\nparagraph."),
        Passage("notes-2", "notes", "Second."),
        Passage("notes-4", "notes", "Third."),
    ]
    bad = [row for row in rows if isinstance(row, BadRow)]
    assert [(str(row.path), row.number) for row in bad] == [
        *(("a.jsonl", line) for line in (4, 5, 6, 7, 8, 9)),
        *(("b.json", item) for item in (2, 3)),
        ("notes.txt", 3),
    ]
    assert str(bad[1]) == 'a.jsonl:5: "text" is missing'


def test_all_bytes_are_accounted_for() -> None:
    Path("a.jsonl").write_text('{"text": "x"}\n\nnonsense\n')
    Path("b.json").write_text(json.dumps(["x"] * 7))
    Path("c.txt").write_text("one\n\ntwo\n")
    for name in ("a.jsonl", "b.json", "c.txt"):
        sizes: list[int] = []
        list(read_corpus([Path(name)], sizes.append))
        assert sum(sizes) == Path(name).stat().st_size
        assert min(sizes) >= 0


@pytest.mark.parametrize("content", ["nonsense", '{"text": "x"}', '"x"', "[" * 50_000])
def test_a_json_file_that_is_no_list_is_an_explained_mistake(
    content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("b.json").write_text(content)
    assert main(["index", "b.json", "--out", "c.index"]) == 2
    assert "error: b.json " in capsys.readouterr().err
    assert not Path("c.index").exists()


def test_the_command_makes_an_index_and_counts_what_it_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    good = [json.dumps({"title": f"T{i}", "text": f"word{i}"}) for i in range(50)]
    Path("a.jsonl").write_text("\n".join([*good, *["{}"] * (MAX_BAD_ROWS_LISTED + 5)]))
    Path("b.txt").write_text("Another passage about word7.")
    assert main(["index", "a.jsonl", "b.txt", "--out", "new/c.index"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("new/c.index: 51 passages, ")
    assert err.count("left out: a.jsonl:") == MAX_BAD_ROWS_LISTED
    assert 'a.jsonl:51: "text" is missing' in err
    assert f"{MAX_BAD_ROWS_LISTED + 5} rows were left out (5 not listed)" in err
    index = FullTextIndex(Path("new/c.index"))
    assert index.num_passages == 51
    assert {passage.title for passage in index.search("word7", 5)} == {"T7", "b"}
    assert main(["index", "b.txt", "--out", "new/c.index"]) == 0  # replaced
    assert FullTextIndex(Path("new/c.index")).num_passages == 1
    assert "left out" not in capsys.readouterr().err


def test_mistakes_are_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty.jsonl").write_text("{}\n")
    Path("precious").write_text("do not overwrite")
    Path("a.txt").write_text("text")
    Path("folder").mkdir()
    for argv, message in [
        (["nowhere.jsonl", "--out", "c.index"], "nowhere.jsonl"),
        (["folder", "--out", "c.index"], "folder"),
        (["empty.jsonl", "--out", "c.index"], "no passage to index"),
        (["a.txt", "--out", "precious"], "precious is no search index"),
        (["a.txt", "--out", "a.txt/c.index"], "a.txt"),
    ]:
        assert main(["index", *argv]) == 2
        error = capsys.readouterr().err
        assert "error: " in error
        assert message in error
        assert "Traceback" not in error
    assert Path("precious").read_text() == "do not overwrite"
    assert sorted(path.name for path in Path.cwd().iterdir()) == [
        "a.txt",
        "empty.jsonl",
        "folder",
        "precious",
    ]
