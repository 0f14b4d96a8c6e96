"""ELPO inside TRL's `GRPOTrainer`: rollouts are trees, each token has its own advantage and clip bounds.

TRL keeps the optimizer, the schedule, LoRA, checkpoints, logging and several GPUs. Ours are the search, the
credit and the bounds. Three seams are used: `rollout_func`, which TRL calls experimental, and two private
methods that are wrapped around `super()`; no body is copied. Every row is a trajectory and padded, so that
TRL forwards about twice the tokens of a packed tree (`benchmarks/against_trl.md`).

Deviations from `elpo.training`: TRL does not clamp log-ratios; a lost rollout is a row without loss that
still counts as a row; where every update is on-policy TRL takes the ratio for exactly 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from elpo.versions import require

require("trl", "1.16", "2", extra="trl")

from datasets import Dataset  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from elpo.adapters.leaf_rows import NEUTRAL, check_algorithm, leaf_rows  # noqa: E402
from elpo.algorithms.strategies import independent  # noqa: E402
from elpo.config import Config  # noqa: E402
from elpo.training.assembly import Assembly, make_strategy  # noqa: E402
from elpo.training.model_loading import derived_seed  # noqa: E402
from elpo.training.rollout_metrics import rollout_metrics  # noqa: E402
from elpo.tree import RolloutTree  # noqa: E402

LOSS_TYPES = {"seq-mean-token-mean": "grpo", "token-mean": "dapo"}
"""TRL's `loss_type` for each of our aggregations."""


class ElpoTrainer(GRPOTrainer):
    """TRL's trainer on an assembled run: `ElpoTrainer(assembly, grpo_arguments(config, folder)).train()`.

    Validation problems, if `args.eval_strategy` asks for any, are answered by independent rollouts.
    """

    def __init__(self, assembly: Assembly, args: GRPOConfig, **kwargs: Any) -> None:
        """`kwargs` go to `GRPOTrainer`: `peft_config`, `callbacks`, `optimizers`.

        Raises:
            ValueError: an argument contradicts ELPO or its configuration, see `check_arguments`.
        """
        config = assembly.config
        check_arguments(args, config)
        self.assembly = assembly
        train = assembly.task.problems("train", config.rl.num_problems)
        held_out = []
        if args.eval_strategy != "no":
            held_out = assembly.task.problems("validation", config.evaluation.num_problems)
        self.problems = {problem.id: problem for problem in [*train, *held_out]}
        super().__init__(
            model=assembly.model,
            reward_funcs=tree_reward,
            args=args,
            train_dataset=Dataset.from_list([{"prompt": problem.id} for problem in train]),
            eval_dataset=Dataset.from_list([{"prompt": p.id} for p in held_out]) if held_out else None,
            processing_class=assembly.tokenizer,
            rollout_func=grow_rows,
            **kwargs,
        )
        if (self.is_fsdp_enabled or self.is_deepspeed_enabled) and not args.use_vllm:
            raise ValueError("the transformers engine cannot sample from a sharded model; set use_vllm")
        self.scheduler = assembly.scheduler
        if args.use_vllm:  # TRL has loaded it, and syncs its weights before each call of `grow_rows`
            from elpo.engines.vllm import VllmEngine

            rollout, end_ids = config.rollout, (assembly.dialogue.end_id,)
            engine = VllmEngine(
                self.vllm_generation.llm.llm_engine, end_ids, rollout.num_slots, rollout.temperature
            )
            self.scheduler = replace(assembly.scheduler, engine=engine, deterministic=False)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        completion_ids = output["completion_ids"]
        for name, neutral in NEUTRAL.items():  # super() has put what `grow_rows` returned into `inputs`
            rows = [row[f"elpo_{name}"] for row in inputs]
            output[name] = _padded(rows, completion_ids.shape[1], neutral).to(completion_ids.device)
        return output

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        epsilons: tuple[float, float] = self.epsilon_low, self.epsilon_high  # type: ignore[has-type]
        self.epsilon_low, self.epsilon_high = 1 - inputs["clip_low"], inputs["clip_high"] - 1
        try:
            loss: Tensor = super()._compute_loss(model, inputs)
        finally:
            self.epsilon_low, self.epsilon_high = epsilons
        return loss


def grpo_arguments(config: Config, output_dir: str, **overrides: Any) -> GRPOConfig:
    """TRL's arguments that say the same as `config`; for one process, whose batch is one tree.

    `overrides` are any of `GRPOConfig`'s. More than one mini-batch a step makes the later ones off-policy.
    """
    rl, algorithm = config.rl, config.algorithm
    return GRPOConfig(
        **{
            "output_dir": output_dir,
            "max_steps": rl.num_steps * (rl.problems_per_step // rl.problems_per_minibatch) * rl.num_epochs,
            "per_device_train_batch_size": algorithm.num_rollouts,
            "gradient_accumulation_steps": rl.problems_per_minibatch,
            "steps_per_generation": rl.problems_per_step,
            "num_iterations": rl.num_epochs,
            "num_generations": algorithm.num_rollouts,
            "loss_type": LOSS_TYPES.get(algorithm.loss.aggregation, "grpo"),
            "delta": algorithm.clip.dual,
            "temperature": config.rollout.temperature,
            "max_completion_length": config.rollout.max_tokens,
            "learning_rate": rl.optimizer.learning_rate,
            "weight_decay": rl.optimizer.weight_decay,
            "adam_beta1": rl.optimizer.betas[0],
            "adam_beta2": rl.optimizer.betas[1],
            "max_grad_norm": rl.optimizer.max_grad_norm,
            "warmup_steps": rl.optimizer.warmup_steps,
            "lr_scheduler_type": rl.optimizer.schedule
            if rl.optimizer.schedule == "cosine"
            else "constant_with_warmup",
            "vllm_importance_sampling_mode": "token_truncate",
            "seed": config.run.seed,
            "use_cpu": config.run.device == "cpu",
            "bf16": config.model.dtype == "bfloat16",
            "gradient_checkpointing": False,
            "report_to": "none",
            "logging_steps": 1,
            **overrides,
        }
    )


def check_arguments(args: GRPOConfig, config: Config) -> None:
    """Refuse arguments under which TRL would train something other than `config.algorithm`.

    Raises:
        ValueError: names the argument, its value and what it should be.
    """
    algorithm = config.algorithm
    check_algorithm(algorithm, "TRL")
    clip = algorithm.clip
    if clip.dual is not None and clip.dual <= 1 + clip.high:
        raise ValueError(
            f"algorithm.clip.dual is {clip.dual}; TRL's delta is a dual clip only above 1 + clip.high = "
            f"{1 + clip.high:g}"
        )
    wanted: dict[str, Any] = {
        "num_generations": algorithm.num_rollouts,
        "loss_type": LOSS_TYPES[algorithm.loss.aggregation],
        "importance_sampling_level": "token",
        "delta": algorithm.clip.dual,
        "temperature": config.rollout.temperature,
        "use_liger_kernel": False,  # takes one bound for all tokens
    }
    if args.use_vllm:
        wanted["vllm_mode"] = "colocate"  # TRL's server answers all processes at once: they would wait
        wanted["vllm_tensor_parallel_size"] = 1
        wanted["vllm_enable_sleep_mode"] = False  # sleeping between the calls of a search discards weights
        if args.vllm_importance_sampling_correction and args.vllm_importance_sampling_mode != "token_mask":
            wanted["vllm_importance_sampling_mode"] = "token_truncate"  # not a product over a trajectory
    for name, value in wanted.items():
        if getattr(args, name) != value:
            raise ValueError(f"{name} is {getattr(args, name)!r}; ELPO as configured needs {value!r}")
    rows = args.per_device_train_batch_size * args.steps_per_generation
    if rows % algorithm.num_rollouts:
        raise ValueError(
            f"per_device_train_batch_size * steps_per_generation is {rows}, which is no multiple of "
            f"num_generations {algorithm.num_rollouts}: a tree would be split between processes"
        )


def grow_rows(problem_ids: list[str], trainer: ElpoTrainer) -> dict[str, list[Any]]:
    """TRL's `rollout_func`: a tree for each problem, as the rows TRL has asked for.

    Args:
        problem_ids: each repeated as often as its tree has rollouts.
        trainer: whose model samples, in evaluation without a search.

    Raises:
        RuntimeError: the repeats of a problem are not together on this process.
    """
    training = trainer.model.training
    size = trainer.num_generations if training else trainer.num_generations_eval
    groups = [problem_ids[i : i + size] for i in range(0, len(problem_ids), size)]
    if any(group != [group[0]] * size for group in groups):
        raise RuntimeError(f"TRL split the {size} rows of a problem: {problem_ids}")
    assembly, step = trainer.assembly, trainer.state.global_step
    config = assembly.config
    trainer.model.eval()
    try:
        trees, counts = trainer.scheduler.grow(
            [trainer.problems[group[0]] for group in groups],
            make_strategy(config.algorithm.strategy) if training else independent(),
            size,
            seed=derived_seed(trainer.args.seed, "rollouts" if training else "evaluation", step),
            policy_version=step,
        )
    finally:
        trainer.model.train(training)
    rows = [row for tree in trees for row in tree_rows(tree, config, size, assembly.dialogue.end_id)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return columns | {"elpo_metrics": [rollout_metrics(trees, counts)] * len(rows)}


def tree_rows(tree: RolloutTree, config: Config, num_rows: int, filler: int) -> Iterator[dict[str, Any]]:
    """The trajectories of a finished tree as TRL takes them, and rows without loss in place of lost ones.

    TRL wants lists: `prompt_ids`; and for each token after the prompt `completion_ids`, `logprobs`,
    `env_mask` (1 on sampled tokens) and ours, `elpo_` with the names of `NEUTRAL`. `elpo_reward` is None
    for a lost rollout. `filler` is the only token of a row without loss.
    """
    prompt = tree.prompt_ids.tolist()
    for row in leaf_rows(tree, config.algorithm, num_rows, config.rollout.max_tokens, filler):
        yield {
            "prompt_ids": prompt,
            "completion_ids": row.token_ids,
            "logprobs": row.logprobs,
            "env_mask": row.mask,
            **{f"elpo_{name}": row.numbers[name] for name in NEUTRAL},
            "elpo_reward": None if row.outcome is None else row.outcome.reward,
        }


def tree_reward(
    completions: Sequence[Any],
    elpo_reward: list[float | None],
    elpo_metrics: list[dict[str, float]],
    log_metric: Any,
    **_: Any,
) -> list[float | None]:
    """TRL's reward function: the rewards are known already; the metrics of the rollouts go to TRL's log."""
    for name, value in elpo_metrics[0].items():
        log_metric(name, value)
    return elpo_reward


def _padded(rows: Sequence[list[float]], width: int, fill: float) -> Tensor:
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows], dtype=torch.float32)
