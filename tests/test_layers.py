"""The shape of the package: imports point down, and torch is only where tensors are."""

from __future__ import annotations

import ast
import graphlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import elpo

PACKAGE = Path(elpo.__file__).parent

# Upwards. What stands on one line does not know of each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("elpo.by_name",),
    ("elpo.schema", "elpo.strict_yaml"),
    (
        "elpo.types",
        "elpo.algorithm_config",
        "elpo.versions",
        "elpo.provenance",
        "elpo.chat",
        "elpo.http_post",
        "elpo.settings_file",
    ),
    ("elpo.tree", "elpo.interfaces", "elpo.config"),
    ("elpo.engines", "elpo.tools", "elpo.models", "elpo.endpoints"),
    ("elpo.graders",),
    ("elpo.tasks",),
    ("elpo.algorithms",),
    ("elpo.evaluation.estimators", "elpo.packing"),
    ("elpo.batch", "elpo.tree_packing", "elpo.tree_json", "elpo.recipes", "elpo.evaluation.trajectories"),
    ("elpo.rollout",),
    (
        "elpo.evaluation.success",
        "elpo.evaluation.scripted",
        "elpo.evaluation.summary",
        "elpo.evaluation.ranking",
        "elpo.evaluation.recovery",
    ),
    ("elpo.training",),
    ("elpo.evaluation.sources", "elpo.debugger", "elpo.studies"),
    ("elpo.evaluation.runner", "elpo.viz", "elpo.adapters", "elpo.serving"),
    ("elpo.commands",),
    ("elpo.cli",),
)

# Files that work on tensors, and so may import torch where they begin.
TORCH = {
    "elpo.adapters.leaf_rows",
    "elpo.adapters.trl",
    *(f"elpo.adapters.verl.{name}" for name in ("agent_loop", "loss", "trainer")),
    "elpo.algorithms.balanced",
    "elpo.algorithms.cispo",
    "elpo.algorithms.gspo",
    "elpo.algorithms.reference_kl",
    "elpo.algorithms.surrogate",
    "elpo.algorithms.surrogates",
    "elpo.algorithms.value_regression",
    "elpo.batch",
    "elpo.engines.sampling",
    "elpo.engines.scripted",  # by way of sampling
    "elpo.engines.slots",
    "elpo.engines.transformers",
    "elpo.engines.vllm",
    "elpo.engines.vllm_server",
    "elpo.engines.vllm_turns",  # by way of sampling
    "elpo.engines.weights",
    "elpo.packing",
    "elpo.tree_packing",
    "elpo.training.checkpoint",
    "elpo.training.collection",  # by way of sft
    "elpo.training.learner",
    "elpo.training.policy_update",
    "elpo.training.reference",
    "elpo.training.sft",
    "elpo.training.tree_attention",
    "elpo.training.trainer",  # by way of the four above
    "elpo.evaluation.runner",  # by way of checkpoint
    "elpo.studies.running",  # the same
}
HEAVY = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "matplotlib", "tensorboard")


def module_name(path: Path) -> str:
    parts = ("elpo", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(name: str, everywhere: bool = True) -> Iterator[str]:
    """Modules a file imports when it is loaded, or `everywhere` in it; never those for the type checker."""
    tree = ast.parse(FILES[name].read_text())
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not everywhere:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(name.split(".")[: -node.level]) if node.level else ""
            module = ".".join(filter(None, (package, node.module)))
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield inner if inner in FILES else module
        pending += ast.iter_child_nodes(node)


def layer(name: str) -> tuple[int, str]:
    """The height of a module and the entry of `LAYERS` it belongs to."""
    for height, entries in enumerate(LAYERS):
        for entry in entries:
            if name == entry or name.startswith(f"{entry}."):
                return height, entry
    raise AssertionError(f"{name} has no place in LAYERS")


MODULES = [name for name in FILES if not FILES[name].name.startswith("__init__")]


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name: str) -> None:
    height, entry = layer(name)
    for imported in imports(name):
        if imported.startswith("elpo."):
            other, other_entry = layer(imported)
            assert other < height or other_entry == entry, f"{name} imports {imported}"


def test_no_two_modules_need_each_other() -> None:
    graph = {name: {i for i in imports(name) if i in FILES} for name in FILES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def test_packages_import_nothing_by_themselves() -> None:
    for name, path in FILES.items():
        if path.name == "__init__.py":
            assert not list(imports(name)), name


def test_heavy_libraries_are_imported_only_by_what_works_on_tensors() -> None:
    graph = {name: {i for i in imports(name, everywhere=False) if i in FILES} for name in FILES}
    heavy: set[str] = set()
    for name in graphlib.TopologicalSorter(graph).static_order():
        outside = {imported.partition(".")[0] for imported in imports(name, everywhere=False)}
        if outside & set(HEAVY) or graph[name] & heavy:
            heavy.add(name)
    assert heavy == TORCH


@pytest.mark.parametrize(
    "name",
    [
        "elpo",
        "elpo.cli",
        "elpo.config",
        "elpo.recipes",
        "elpo.algorithms.strategies",
        "elpo.algorithms.credit",
        "elpo.tree_json",
        "elpo.rollout.scheduler",
        "elpo.graders.code",
        "elpo.tasks.ledger",
        "elpo.tasks.lookup",
        "elpo.tasks.programs",
        *(f"elpo.tasks.{task}" for task in ("gsm8k", "gpqa", "livecodebench", "check")),
        "elpo.evaluation.scripted",
        "elpo.tools.python",
        "elpo.tools.search",
        "elpo.tools.search_http",
        "elpo.training.assembly",
        "elpo.training.run_folder",
        "elpo.training.trackers",
        "elpo.evaluation.summary",
        "elpo.viz.evaluation",
        "elpo.viz.figure",
        "elpo.viz.plots",
        "elpo.viz.report",
        "elpo.viz.results",
        "elpo.viz.server",
        "elpo.viz.tree",
    ],
)
def test_importing_it_is_light(name: str) -> None:
    code = f"import sys, {name}; print(*sorted({set(HEAVY)!r} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == ""
