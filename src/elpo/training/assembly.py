"""From a configuration to the objects that run it. Whatever can be wrong is found before a model loads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from elpo.algorithm_config import StrategyConfig
from elpo.algorithms.credit_rules import credit_rule
from elpo.algorithms.entropy_branching import entropy_branching
from elpo.algorithms.frontier import frontier
from elpo.algorithms.posterior import posterior
from elpo.algorithms.strategies import Strategy, bel, independent, random_prefix
from elpo.algorithms.vine import vine
from elpo.by_name import function_by_name
from elpo.config import Config, RolloutConfig
from elpo.interfaces import Task, Tool
from elpo.models.lora import require_lora
from elpo.rollout.dialogue import Dialogue
from elpo.rollout.episode import Limits
from elpo.rollout.scheduler import Scheduler
from elpo.tasks.loading import load_task
from elpo.training.demonstrations import demonstrations
from elpo.training.model_check import check_model, read_architecture
from elpo.training.model_folder import is_adapter
from elpo.training.model_loading import autocast_dtype, find_model, load_model, load_tokenizer
from elpo.training.tools import make_tools
from elpo.training.vllm_sampling import check_vllm, with_vllm

if TYPE_CHECKING:
    import torch


@dataclass
class Assembly:
    """Everything a run works with."""

    config: Config
    task: Task
    tools: Mapping[str, Tool]
    model: Any  # a transformers causal LM
    tokenizer: Any
    dialogue: Dialogue
    scheduler: Scheduler

    def close(self) -> None:
        """Stop the tools, what the task has started to grade with, and the engine's connections."""
        getattr(self.scheduler.engine, "close", lambda: None)()
        getattr(self.task, "close", lambda: None)()
        for tool in self.tools.values():
            tool.close()


def make_strategy(config: StrategyConfig) -> Strategy:
    """The rollout strategy a configuration names.

    Raises:
        ValueError: it names a function by `module:name` that does not exist.
    """
    if ":" in config.name:
        own: Strategy = function_by_name(config.name, "algorithm.strategy.name: ")
        return own
    match config.name:
        case "independent":
            return independent()
        case "random_prefix":
            return random_prefix(config.num_chains)
        case "frontier":
            return frontier()
        case "vine":
            return vine(config.num_chains, config.num_samples)
        case "entropy_branching":
            return entropy_branching(
                num_chains=config.num_chains,
                rule=config.branching,
                entropy_weight=config.entropy_weight,
                penalty=config.branch_penalty,
                pre_monitor=config.pre_monitor,
                entropy_tokens=config.entropy_tokens,
            )
        case "posterior":
            return posterior(
                max_failures=config.max_failures,
                max_suffixes=config.max_suffixes,
                confidence=config.confidence,
                round_cost=config.round_cost,
                informed=config.informed,
                search_limit=config.search_limit,
                entropy_tokens=config.entropy_tokens,
            )
        case "bel":
            return bel(
                max_failures=config.max_failures,
                min_suffixes=config.min_suffixes,
                max_suffixes=config.max_suffixes,
                entropy_slope=config.entropy_slope,
                entropy_tokens=config.entropy_tokens,
                loop=config.loop,
            )


def assemble(
    config: Config, device: torch.device, model_folder: Path | None = None, training: bool = False
) -> Assembly:
    """Build task, tools, model, engine and scheduler; `model_folder` overrides where the weights come from.

    For `training` the data is read first, and all that can be known about the model before its weights.

    Raises:
        ValueError: an option, a name or the model folder is wrong, or the tools do not work here.
    """
    task = load_task(config.task.name, config.task.options)
    if config.sft.num_steps and config.sft.path is None and not hasattr(task, "demonstrations"):
        raise ValueError(
            f"task {task.name!r} has no demonstrations to learn from; set sft.num_steps=0 or sft.path"
        )
    if training:
        make_strategy(config.algorithm.strategy)
        credit_rule(config.algorithm.credit.name)
    require_lora(config.model.lora)
    saved = None if model_folder is None else find_model(str(model_folder))
    adapter = Path(saved) if saved and is_adapter(Path(saved)) else None
    wanted = config.model.path
    path = saved if saved and not adapter else None if wanted is None else find_model(wanted)
    if path and is_adapter(Path(path)):
        raise ValueError(
            f"model.path: {path} holds adapters without their model; give the model's folder, or merge them "
            "into it with PEFT (merge_and_unload) and give the result"
        )
    check_vllm(config)
    tools = make_tools(task, config)
    try:
        if training and config.rl.num_steps:
            check_problems(task, "train", config.rl.num_problems)
        if training:
            check_problems(task, "validation", config.evaluation.num_problems)
        if training and config.sft.num_steps and config.sft.path:
            demonstrations(task, config, num=1, seed=0)
        tokenizer = load_tokenizer(saved or path, lambda num: demonstrations(task, config, num, seed=0)[0])
        schemas = [tool.schema for tool in tools.values()]
        if path is None:
            dialogue = Dialogue(tokenizer, schemas)
        else:
            dialogue, _ = check_model(path, read_architecture(path), tokenizer, schemas)
        model = load_model(config.model, path, tokenizer, config.run.seed, adapter)
        if not config.model.lora.quantized:  # those are where they were loaded to
            model.to(device)
        scheduler = make_scheduler(config.rollout, model, task, tools, dialogue, autocast_dtype(config.model))
        if config.rollout.engine == "vllm":
            scheduler = with_vllm(scheduler, config, model)
    except BaseException:
        for tool in tools.values():
            tool.close()
        raise
    return Assembly(config, task, tools, model, tokenizer, dialogue, scheduler)


def check_problems(task: Task, split: Literal["train", "validation"], num: int) -> None:
    """Refuse a split that cannot be trained or measured on.

    Raises:
        ValueError: it has no problems, or an id that is not text or not the only one of its name: ids decide
            what is sampled.
    """
    what = {"train": "training", "validation": "validation"}[split]
    ids = [problem.id for problem in task.problems(split, num)]
    if not ids and split == "train":
        raise ValueError(f"task {task.name!r} has no training problems; use it for evaluation")
    if not ids:
        raise ValueError(
            f"task {task.name!r} has no validation problems, by which the best weights are chosen"
        )
    if wrong := [id for id in ids if not isinstance(id, str)]:
        raise ValueError(f"task {task.name!r}: the {what} id {wrong[0]!r} is not text; use str(id)")
    name, times = Counter(ids).most_common(1)[0]
    if times > 1:
        raise ValueError(f"task {task.name!r}: {times} {what} problems have the id {name!r}; ids must differ")


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device `run.device` asks for.

    Raises:
        ValueError: it asks for CUDA where there is none.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("run.device is cuda, but torch finds no CUDA device here; use auto or cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def make_scheduler(
    config: RolloutConfig,
    model: Any,
    task: Task,
    tools: Mapping[str, Tool],
    dialogue: Dialogue,
    autocast: torch.dtype | None = None,
) -> Scheduler:
    """The scheduler that samples from `model` itself, with the configured limits."""
    from elpo.engines.transformers import TransformersEngine

    engine = TransformersEngine(
        model,
        end_ids=(dialogue.end_id,),
        num_slots=config.num_slots,
        temperature=config.temperature,
        prefix_cache_mb=config.prefix_cache_mb,
        autocast=autocast,
    )
    return Scheduler(engine, task, tools, dialogue, Limits.of(config), deterministic=config.deterministic)
