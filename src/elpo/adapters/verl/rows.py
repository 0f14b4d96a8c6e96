"""A task's problems as data files for verl: `python -m elpo.adapters.verl.rows RECIPE FOLDER`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from elpo.config import Config
from elpo.interfaces import Split
from elpo.recipes import load_config
from elpo.tasks.loading import load_task
from elpo.types import Problem


def verl_rows(problems: Sequence[Problem], data_source: str, split: Split) -> Iterator[dict[str, Any]]:
    """One row for each problem, as verl's data sets have them; only those of split train are searched."""
    for index, problem in enumerate(problems):
        yield {
            "data_source": data_source,
            "prompt": [dict(message) for message in problem.messages],
            "reward_model": {"style": "rule", "ground_truth": problem.answer},
            "extra_info": {
                "index": index,
                "id": problem.id,
                "split": split,
                "metadata": json.dumps(dict(problem.metadata)),
            },
        }


def write_rows(config: Config, folder: Path) -> list[Path]:
    """`train.parquet` and `validation.parquet` of the recipe's task; returns the files.

    Raises:
        ValueError: a problem's metadata cannot be written as JSON.
    """
    from datasets import Dataset

    task = load_task(config.task.name, config.task.options)
    wanted: dict[Split, int] = {"train": config.rl.num_problems, "validation": config.evaluation.num_problems}
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for split, num in wanted.items():
        try:
            rows = list(verl_rows(task.problems(split, num), task.name, split))
        except TypeError as error:
            raise ValueError(f"the metadata of task {task.name!r} is not JSON: {error}") from error
        files.append(folder / f"{split}.parquet")
        Dataset.from_list(rows).to_parquet(str(files[-1]))
    return files


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    print(*write_rows(load_config(Path(sys.argv[1])), Path(sys.argv[2])), sep="\n")
