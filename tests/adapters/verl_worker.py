"""verl's real training worker, with its FSDP2 engine on gloo and our loss, in a process of its own.

python -m tests.adapters.verl_worker FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import verl
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tensordict import TensorDict
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from elpo.adapters.verl.agent_loop import leaf_outputs
from elpo.adapters.verl.loss import elpo_loss
from elpo.adapters.verl.settings import verl_arguments
from elpo.adapters.verl.trainer import token_columns
from elpo.config import Config
from elpo.rollout.counts import RolloutCounts
from tests.adapters.agreement import moved, our_update
from tests.training.small import VOCAB, random_tree, small_model


def main(folder: Path) -> None:
    """Loss and norm of the gradient of one update: verl's, then ours."""
    from verl.utils import tensordict_utils
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.config import TrainingWorkerConfig
    from verl.workers.engine_workers import TrainingWorker

    from tests.adapters import verl_on_cpu
    from tests.adapters.verl_fit import HERE

    verl_on_cpu.start_gloo()
    trees = [random_tree(seed, small_model()) for seed in (1, 2)]
    words = {f"w{i}": i for i in range(VOCAB)}
    used = {int(i) for tree in trees for leaf in tree.leaves for i in tree.context(leaf)}
    pad = f"w{min(set(range(VOCAB)) - used)}"  # the embedding of what pads gets no gradient
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), pad_token=pad, eos_token="w1"
    )
    tokenizer.save_pretrained(folder)
    moved(small_model()).save_pretrained(folder)
    problems = {"problems_per_step": 2, "problems_per_minibatch": 2, "num_steps": 1}
    ours = Config.model_validate(
        {
            "model": {"path": str(folder)},
            "algorithm": {"num_rollouts": 5, "clip": {"low": 0.05, "high": 0.08, "elc": 0.1}},
            "rl": problems | {"optimizer": {"max_grad_norm": 1e9}},
        }
    )
    with initialize_config_dir(str(Path(verl.__file__).parent / "trainer" / "config"), version_base=None):
        arguments = verl_arguments(ours, folder / "recipe.yaml", folder)
        config = compose("ppo_trainer", [*arguments, *HERE.split()])
    OmegaConf.resolve(config)
    actor: Any = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    actor.model_config = omega_conf_to_dataclass(config.actor_rollout_ref.model)
    worker_config = TrainingWorkerConfig(
        model_type="language_model",
        model_config=actor.model_config,
        engine_config=actor.engine,
        optimizer_config=actor.optim,
        checkpoint_config=actor.checkpoint,
    )
    worker_config.engine_config.use_dynamic_bsz = False
    worker_config.engine_config.micro_batch_size_per_gpu = 5
    worker = TrainingWorker(config=worker_config)
    worker.reset()
    worker.set_loss_fn(partial(elpo_loss, config=actor, dual_clip=None))

    outputs = [o for tree in trees for o in leaf_outputs(tree, RolloutCounts(), ours, 5, 1, [0], 0.0)]
    masks = [torch.tensor(output.response_mask) for output in outputs]
    sequences = [torch.tensor(output.prompt_ids + output.response_ids) for output in outputs]

    def jagged(rows: list[Any]) -> torch.Tensor:
        return torch.nested.as_nested_tensor([torch.as_tensor(row) for row in rows], layout=torch.jagged)

    data = TensorDict(
        {
            "input_ids": jagged(sequences),
            "position_ids": jagged([torch.arange(len(ids)) for ids in sequences]),
            "prompts": jagged([output.prompt_ids for output in outputs]),
            "responses": jagged([output.response_ids for output in outputs]),
            "response_mask": jagged(masks),
            "loss_mask": jagged(masks),
            "old_log_probs": jagged([output.response_logprobs for output in outputs]),
            **token_columns(masks, [output.extra_fields for output in outputs], [False] * len(outputs)),
        },
        batch_size=len(outputs),
    )
    tensordict_utils.assign_non_tensor(
        data,
        temperature=1.0,
        global_batch_size=len(outputs),
        mini_batch_size=len(outputs),
        epochs=1,
        seed=1,
        dataloader_kwargs={"shuffle": False},
        calculate_entropy=False,
    )
    metrics = tensordict_utils.get(worker.train_mini_batch(data), "metrics")

    def number(name: str) -> float:
        value = metrics[name]
        return float(value[0] if isinstance(value, list) else value)

    torch.distributed.destroy_process_group()
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        del os.environ[name]
    expected, gradient = our_update(trees, ours.algorithm, ours.rl)
    assert expected["clip/low_share"] > 0
    theirs = [number("actor/pg_loss"), number("grad_norm")]
    print(json.dumps({"verl": theirs, "ours": [expected["loss"], float(gradient.norm())]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
