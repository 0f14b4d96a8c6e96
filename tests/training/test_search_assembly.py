"""How a recipe's search section becomes a tool, and what it says about mistakes."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from elpo.config import Config
from elpo.recipes import ConfigError, load_config
from elpo.tools.search_backend import Passage
from elpo.tools.search_index import write_index
from elpo.training.tools import make_tools
from elpo.types import Problem, ToolCall


class WithDocuments:
    name, tool_names = "mine", ("search",)

    def documents(self) -> Iterable[object]:
        return ["Lima is a capital.", {"title": "Quito", "text": "A capital too."}]


class WithoutDocuments:
    name, tool_names = "theirs", ("search",)


class Empty(WithDocuments):
    def documents(self) -> Iterable[object]:
        return []


class Wrong(WithDocuments):
    def documents(self) -> Iterable[object]:
        return ["fine", 3]


def search(task: Any, *settings: str, query: str = "capital") -> str:
    tools = make_tools(task, load_config(None, list(settings)))
    try:
        return tools["search"].open(Problem("p", (), "")).call(ToolCall("search", {"query": query}))[0].output
    finally:
        for tool in tools.values():
            tool.close()


def test_a_task_brings_its_own_documents() -> None:
    assert search(WithDocuments()) == "[1] Lima is a capital.\n[2] Quito: A capital too."
    assert search(WithDocuments(), "search.top_k=1") == "[1] Lima is a capital."
    long = search(WithDocuments(), "search.output_chars=80", "search.top_k=1", query="Quito")
    assert long == "[1] Quito: A capital too."


def test_a_configured_index_comes_before_the_tasks_documents(tmp_path: Path) -> None:
    path = tmp_path / "corpus.index"
    write_index([Passage("1", "Cusco", "A former capital.")], path)
    for task in (WithDocuments(), WithoutDocuments()):
        assert search(task, f"search.index={path}") == "[1] Cusco: A former capital."


@pytest.mark.skipif(importlib.util.find_spec("bm25s") is None, reason="bm25s is not installed")
def test_bm25s_searches_the_same_passages(tmp_path: Path) -> None:
    assert search(WithDocuments(), "search.backend=bm25s", query="quito") == "[1] Quito: A capital too."


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        (
            WithoutDocuments(),
            [],
            "task 'theirs' brings no documents to search; set search.index or search.url",
        ),
        (Empty(), [], r"the documents\(\) of task 'mine' are empty"),
        (Wrong(), [], r"the documents\(\) of task 'mine': a passage is a string or an object, not int"),
        (WithDocuments(), ["search.index=nowhere"], "search.index: there is no index file nowhere"),
        (WithDocuments(), ["search.index=~/nowhere"], "search.index: there is no index file /"),
        (WithDocuments(), ["search.backend=http", "search.url=host:1"], "search.url: 'host:1' is no address"),
    ],
)
def test_what_cannot_be_searched_is_found_before_a_model_loads(
    task: Any, settings: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_tools(task, load_config(None, settings))


def test_a_server_that_is_not_there_is_found_before_a_model_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    from elpo.tools import search_http

    monkeypatch.setattr(search_http.RetrievalClient.__init__, "__defaults__", (10.0, 0.01))
    settings = ["search.backend=http", "search.url=http://127.0.0.1:9/retrieve", "search.timeout=0.5"]
    with pytest.raises(ValueError, match=r"search: http://127\.0\.0\.1:9/retrieve gave no result"):
        make_tools(WithDocuments(), load_config(None, settings))


def test_an_unknown_tool_is_named_with_the_known_ones() -> None:
    class Strange(WithDocuments):
        tool_names = ("search", "hammer")

    with pytest.raises(ValueError, match=r"wants the tools \['hammer'\]; the tools are: python, search"):
        make_tools(Strange(), Config())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["search.backend=http"], "needs a url"),
        (["search.backend=http", "search.url=http://h", "search.index=x"], "and no index"),
        (["search.url=http://h"], "asks no server"),
        (["search.backend=elastic"], "sqlite"),
        (["search.top_k=0"], "top_k"),
        (["search.output_chars=10"], "output_chars"),
        (["search.timeout=0"], "timeout"),
    ],
)
def test_mistakes_in_the_section(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, settings)
