"""The report file without a browser: what is in it, what is not, and what it needs."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from elpo.algorithms.advantage import node_values
from elpo.algorithms.credit import assign_credit
from elpo.recipes import load_config
from elpo.training.run_folder import RunFolder, RunFolderError
from elpo.types import Problem
from elpo.viz.report import SCRIPTS, write_report
from elpo.viz.run_data import RunData
from elpo.viz.token_text import find_tokenizer, token_texts
from elpo.viz.tree_view import tree_statistics, tree_view
from tests.viz.runs import HOSTILE, coins_tree, figure4_tree, hostile_tree, scripted_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return scripted_run(tmp_path_factory.mktemp("report") / "coins")


def documents(page: str) -> dict[str, Any]:
    """What the page unpacks, read with the standard library alone."""
    blocks = re.findall(r'<script type="text/plain" data-name="([^"]+)">([^<]*)</script>', page)
    return {
        html.unescape(name): json.loads(gzip.decompress(base64.b64decode(block))) for name, block in blocks
    }


def test_one_file_with_everything_in_it(run: RunFolder) -> None:
    file = write_report([run.path])
    assert file == run.path / "report.html"
    page = file.read_text()
    found = documents(page)
    index = found.pop("index")
    assert sorted(tree["key"] for tree in index["trees"]) == sorted(found)
    assert len(found) == 4 * 3 + 3 * 2
    assert "@@" not in page.replace("<!-- @@DATA@@", "")
    # neither scripts, styles, pictures nor data from elsewhere; links lead out, and nothing else
    markup = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    outside = re.findall(r"""<(?!a\b)\w+[^>]*\b(?:src|href)=["']([^"']*)""", markup)
    assert outside == ["data:,"]
    assert "@import" not in markup and "url(#" in markup and "url(http" not in markup
    assert "default-src 'none'" in page and "connect-src" not in page and "'unsafe-eval'" not in page
    for name in ("d3 7", "@observablehq/plot", "interval-tree-1d", "Permission to use, copy, modify"):
        assert name in page


def test_the_policy_allows_exactly_the_scripts_of_the_page(run: RunFolder) -> None:
    import hashlib

    page = write_report([run.path]).read_text()
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digests = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts}
    assert digests == set(re.findall(r"'sha256-([^']+)'", page))
    assert len(scripts) == 3


def test_scripts_make_text_never_markup() -> None:
    for name in SCRIPTS:
        source = (files("elpo.viz") / "page" / name).read_text()
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\.html\(|\beval\b", source
        )
        assert len(source.splitlines()) < 300, name


def test_metrics_come_back_by_phase(run: RunFolder) -> None:
    metrics = RunData([run.path]).index()["runs"][0]["metrics"]
    assert metrics["sft"]["step"] == list(range(1, 31))
    assert metrics["rl"]["rollouts/total"] == [48] * 4
    assert metrics["rl"]["kl/approx"] == [None] * 4  # null in the file, nothing in the page
    assert metrics["evaluation"]["step"] == [0, 2, 4]


def test_a_tree_document_has_the_trees_numbers() -> None:
    tree = figure4_tree()
    credit = assign_credit(tree)
    view = tree_view(tree, credit)
    for name, array in (
        ("advantage", credit.advantages),
        ("branch", credit.branch),
        ("low", credit.clip_low),
    ):
        np.testing.assert_allclose([node["credit"][name] for node in view["nodes"]], array, rtol=1e-3)
    np.testing.assert_allclose([node["value"] for node in view["nodes"]], node_values(tree), rtol=1e-3)
    assert [node["entropy"] for node in view["nodes"]] == [1.0] * 32
    for shown, found in zip(view["searches"], tree.localizations, strict=True):
        assert (shown["critical"], shown["path"][-1]) == (found.critical, found.leaf)
        assert shown["rollout"] == tree.leaves.index(found.leaf)
        assert [tuple(probe.values()) for probe in shown["probes"]] == [
            (probe.anchor, probe.num_rollouts, probe.num_successes) for probe in found.probes
        ]


def test_numbers_that_are_none_are_no_obstacle(tmp_path: Path) -> None:
    tree = figure4_tree()
    node = tree.nodes[0]
    odd = np.float32([-np.inf, np.nan, 0, 0, 0, 0])
    tree.nodes[0] = replace(node, step=replace(node.step, logprobs=odd, entropies=-odd))
    tree.outcomes[tree.leaves[0]] = replace(tree.outcomes[tree.leaves[0]], reward=float("nan"))
    view = json.loads(json.dumps(tree_view(tree, assign_credit(tree)), allow_nan=False))
    assert view["nodes"][0]["entropy"] is None and view["nodes"][0]["value"] is None
    assert view["nodes"][0]["tokens"]["logprobs"][:3] == [-1e4, 0, 0]


def test_statistics_of_a_tree_add_up() -> None:
    tree = figure4_tree()
    found = tree_statistics(tree)
    assert len(found["calls"]) == 16 and sum(correct for _, correct in found["calls"]) == 2
    depths = [len(tree.path(search.critical)) for search in tree.localizations if search.critical is not None]
    assert [search["critical"] for search in found["searches"]] == depths
    assert all(0 <= good <= drawn for search in found["searches"] for _, drawn, good in search["probes"])


def test_texts_of_tokens_are_the_text(run: RunFolder) -> None:
    tokenizer = find_tokenizer(run)
    assert tokenizer is not None
    text = 'bag.append(gold); 日本語 🙂\n{"a": 1}'
    ids = tokenizer.encode(text).ids
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids) and "".join(texts) == text
    assert token_texts(tokenizer, [10**6]) == [""]


def test_without_a_tokenizer_there_is_a_report(tmp_path: Path) -> None:
    folder = scripted_run(tmp_path / "run", "model.path=/nowhere/model")
    for file in folder.checkpoints.rglob("tokenizer.json"):
        file.unlink()
    assert find_tokenizer(folder) is None
    nodes = documents(write_report([folder.path]).read_text())["0-rl-1-0"]["nodes"]
    assert all(node["tokens"]["texts"] is None for node in nodes)


def test_nothing_of_a_model_is_in_the_markup(run: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "<script>window.broken = 4<")
    folder.prepare(run.config())
    tokenizer = AutoTokenizer.from_pretrained(run.checkpoints / "rl-000004" / "model")
    folder.write_trees(1, [(hostile_tree(tokenizer), None)])
    page = write_report([folder.path], tmp_path / "r.html").read_text()
    assert "window.broken" not in page.replace("&lt;script&gt;window.broken = 4&lt;", "")
    stored = documents(page)["0-rl-1-0"]
    assert stored["nodes"][0]["result"]["output"] == HOSTILE.replace("\ud800", "?")


def test_nothing_of_a_confidential_problem_is_in_it(run: RunFolder, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(run.checkpoints / "rl-000004" / "model")
    problem = Problem(
        "q7", ({"role": "user", "content": "canaryquestion"},), "canaryanswer", {"confidential": True}
    )
    tree = replace(coins_tree(Problem("x", (), ""), tokenizer, 5, 0.7), problem=problem)
    assert "bag.append" in tree.nodes[0].step.text + str(tree.nodes[0].step.tool_call)
    view = tree_view(tree, assign_credit(tree), find_tokenizer(run))  # straight from memory, never stored
    told = json.dumps(view) + json.dumps(tree_statistics(tree))
    for word in ("canary", "bag", "gold", "python", "full"):
        assert word not in told
    assert view["confidential"] and all(node["tokens"]["texts"] is None for node in view["nodes"])
    folder = RunFolder(tmp_path / "run")
    folder.prepare(run.config())
    folder.write_trees(1, [(tree, assign_credit(tree))])
    found = documents(write_report([folder.path]).read_text())
    assert "canary" not in json.dumps(found) and "bag" not in json.dumps(found["0-rl-1-0"])


def test_runs_that_differ_in_their_seed_are_one_group(tmp_path: Path) -> None:
    runs = [
        scripted_run(tmp_path / name, *overrides, steps=1, trees=1)
        for name, overrides in {
            "a": ["run.seed=1"],
            "b": ["run.seed=2"],
            "c": ["algorithm.name=grpo"],
        }.items()
    ]
    index = RunData([run.path for run in runs]).index()
    assert [run["group"] for run in index["runs"]] == [0, 0, 2]
    assert {tree["run"] for tree in index["trees"]} == {0, 1, 2}


def test_runs_from_cold_starts_of_other_seeds_are_one_group(tmp_path: Path) -> None:
    paths = [
        "cold-0/checkpoints/rl-000000/model",
        "cold-1/checkpoints/rl-000000/model",
        "Qwen/Qwen3-4B",
        "Qwen/Qwen3-8B",
    ]
    for number, path in enumerate(paths):
        folder = RunFolder(tmp_path / str(number))
        folder.prepare(load_config(None, [f"model.path={path}", f"run.seed={number}"]))
    index = RunData([tmp_path / str(number) for number in range(4)]).index()
    assert [run["group"] for run in index["runs"]] == [0, 0, 2, 3]


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="there is no run in"):
        write_report([tmp_path])
    with pytest.raises(RunFolderError, match="there is no tree"):
        RunData([scripted_run(tmp_path / "r", steps=1, trees=1).path]).tree("0-rl-1-7")
