"""What the report page is told: an index of one or more runs, and a document for each of their trees.

Everything is JSON. The page asks for documents by name: `index`, and the `key` of a tree. A report carries
all of them; `elpo serve` answers with the present state of the folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from elpo.algorithms.credit import Credit
from elpo.config import Config
from elpo.recipes import changed_keys
from elpo.training.run_folder import Phase, RunFolder, RunFolderError
from elpo.tree import RolloutTree
from elpo.viz.token_text import find_tokenizer
from elpo.viz.tree_view import tree_statistics, tree_summary, tree_view

PHASES: tuple[Phase, ...] = ("rl", "evaluation")
"""The phases that keep trees."""


class RunData:
    """Reads run folders as the page needs them. Files of trees are read again only after they changed.

    Raises:
        RunFolderError: if one of the folders holds no run.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self.folders = [RunFolder(path) for path in paths]
        configs = [folder.config() for folder in self.folders]
        self._groups = [
            next(j for j, first in enumerate(configs[: i + 1]) if _differ_in_seed(first, config))
            for i, config in enumerate(configs)
        ]
        self._tokenizers: dict[int, Any] = {}
        self._summaries: dict[Path, tuple[tuple[int, int], list[dict[str, Any]]]] = {}

    def index(self) -> dict[str, Any]:
        """Names, settings and metrics of the runs, and a summary of every saved tree."""
        return {
            "runs": [
                self._run(folder, group) for folder, group in zip(self.folders, self._groups, strict=True)
            ],
            "trees": [tree for number in range(len(self.folders)) for tree in self._trees(number)],
        }

    def tree(self, key: str) -> dict[str, Any]:
        """The document of a tree, by the `key` the index gives.

        Raises:
            RunFolderError: there is no such tree, or no more.
        """
        try:
            run, phase, step, number = key.split("-")
            folder = self.folders[int(run)]
            if phase not in PHASES or int(run) < 0 or int(number) < 0:
                raise ValueError(key)
            tree, credit = folder.read_trees(int(step), phase)[int(number)]
        except RunFolderError:
            raise
        except (ValueError, IndexError):
            raise RunFolderError(f"there is no tree {key!r}") from None
        return tree_view(tree, credit, self._tokenizer(int(run)))

    def documents(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every document with its name, the index last; a file of trees is read once."""
        for number, folder in enumerate(self.folders):
            for phase in PHASES:
                for step in folder.tree_steps(phase):
                    for i, (tree, credit) in enumerate(self._read(folder, step, phase)):
                        yield f"{number}-{phase}-{step}-{i}", tree_view(tree, credit, self._tokenizer(number))
        yield "index", self.index()

    def _run(self, folder: RunFolder, group: int) -> dict[str, Any]:
        config = folder.config()
        error = folder.error_file.read_text(encoding="utf-8") if folder.error_file.exists() else ""
        return {
            "name": folder.path.absolute().name,
            "group": group,
            "algorithm": config.algorithm.name,
            "task": config.task.name,
            # a report is given to others: of a folder not more than its name
            "model": "/".join(Path(config.model.path).parts[-2:]) if config.model.path else "tiny model",
            "seed": config.run.seed,
            "rollouts_per_problem": config.algorithm.num_rollouts,
            "num_steps": {"sft": config.sft.num_steps, "rl": config.rl.num_steps},
            "error": error.strip().splitlines()[-1][:500] if error.strip() else None,
            "metrics": _columns(folder.read_metrics()),
        }

    def _trees(self, number: int) -> Iterator[dict[str, Any]]:
        folder = self.folders[number]
        for phase in PHASES:
            for step in folder.tree_steps(phase):
                for i, summary in enumerate(self._summaries_of(folder, step, phase)):
                    yield {
                        "key": f"{number}-{phase}-{step}-{i}",
                        "run": number,
                        "phase": phase,
                        "step": step,
                        **summary,
                    }

    def _summaries_of(self, folder: RunFolder, step: int, phase: Phase) -> list[dict[str, Any]]:
        file = folder.trees_file(step, phase)
        if self._summaries.get(file, (None,))[0] != _stamp(file):
            self._read(folder, step, phase)
        return self._summaries[file][1]

    def _read(self, folder: RunFolder, step: int, phase: Phase) -> list[tuple[RolloutTree, Credit | None]]:
        """The trees of a file, whose summaries are kept."""
        file = folder.trees_file(step, phase)
        stamp = _stamp(file)
        trees = folder.read_trees(step, phase)
        summaries = [{**tree_summary(tree), "statistics": tree_statistics(tree)} for tree, _ in trees]
        self._summaries[file] = (stamp, summaries)
        return trees

    def _tokenizer(self, number: int) -> Any:
        if self._tokenizers.get(number) is None:  # a live run has none before its first checkpoint
            self._tokenizers[number] = find_tokenizer(self.folders[number])
        return self._tokenizers[number]


def _differ_in_seed(one: Config, other: Config) -> bool:
    """Whether runs differ in nothing but `run.*` and, if they began with a checkpoint, whose it was."""
    changed = [key for key in changed_keys(one, other) if not key.startswith("run.")]
    if changed != ["model.path"]:
        return not changed
    begun = [Path(config.model.path or "").parts for config in (one, other)]
    return begun[0][-3:] == begun[1][-3:] and begun[0][-3:-2] == ("checkpoints",)


def _stamp(file: Path) -> tuple[int, int]:
    """Differs where a file has been replaced."""
    found = file.stat()
    return found.st_mtime_ns, found.st_size


def _columns(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[float | None]]]:
    """Metrics by phase, a list for each name; None where a line lacks it; the last of a step."""
    columns: dict[str, dict[str, list[float | None]]] = {}
    for phase in ("sft", *PHASES):
        lines = list({record["step"]: record for record in records if record["phase"] == phase}.values())
        names = dict.fromkeys(name for line in lines for name in line if name != "phase")
        columns[phase] = {name: [_finite(line.get(name)) for line in lines] for name in names}
    return columns


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
