"""A run of verl's own trainer with the plug-in, on a CPU: `python -m tests.adapters.verl_fit FOLDER STEPS`.

The task is that of `tests.coins`; its policy has had a cold start. verl logs to FOLDER/metrics.jsonl.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import ray
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from elpo.adapters.verl.rows import write_rows
from elpo.adapters.verl.settings import verl_arguments
from elpo.recipes import load_config
from elpo.training.trainer import train
from tests.coins import coins_config

ROOT = Path(__file__).parents[2]
MODULES = "tests.adapters.verl_on_cpu,elpo.adapters.verl.trainer"


# what a recipe does not say: where and with what it runs
HERE = """
actor_rollout_ref.rollout.name=on_cpu
actor_rollout_ref.rollout.agent.num_workers=1
actor_rollout_ref.rollout.tensor_model_parallel_size=1
actor_rollout_ref.rollout.free_cache_engine=False
actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=False
actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=24
actor_rollout_ref.actor.strategy=fsdp2
actor_rollout_ref.actor.use_dynamic_bsz=False
actor_rollout_ref.actor.use_torch_compile=False
actor_rollout_ref.actor.fsdp_config.model_dtype=fp32
actor_rollout_ref.actor.fsdp_config.use_torch_compile=False
++actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32
++actor_rollout_ref.actor.fsdp_config.mixed_precision.reduce_dtype=fp32
actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=12
actor_rollout_ref.model.use_remove_padding=False
actor_rollout_ref.model.enable_gradient_checkpointing=False
+actor_rollout_ref.model.override_config.attn_implementation=eager
data.dataloader_num_workers=0
data.filter_overlong_prompts=False
reward.num_workers=1
trainer.device=cpu
trainer.n_gpus_per_node=1
trainer.nnodes=1
trainer.logger=[console,file]
trainer.val_before_train=True
trainer.test_freq=-1
trainer.save_freq=-1
trainer.resume_mode=disable
trainer.use_v1=True
transfer_queue.enable=True
transfer_queue.backend.SimpleStorage.num_data_storage_units=1
"""


def main(folder: Path, num_steps: int) -> None:
    cold = coins_config(folder / "cold", "rl.num_steps=0", "rl.num_problems=64", "evaluation.num_problems=8")
    train(cold)
    model = max((folder / "cold" / "checkpoints").glob("*/model"), key=os.path.getmtime)
    recipe = folder / "recipe.yaml"
    settings = cold.model_dump(mode="json")
    settings["model"]["path"], settings["rl"]["num_steps"] = str(model), num_steps
    settings["rollout"]["max_tokens"] = 800  # an eighth of it may be prompt
    recipe.write_text(yaml.safe_dump(settings))
    write_rows(load_config(recipe), folder / "data")
    environment = {
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "OMP_NUM_THREADS": "1",
        "VERL_USE_EXTERNAL_MODULES": MODULES,
        "VERL_USE_EXTERNAL_PLUGINS": "none",
        "VERL_LOGGING_LEVEL": "WARN",
        "VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl"),
    }
    os.environ.update(environment)
    import verl

    ray.init(  # logical CPUs: with fewer, verl's actors wait for each other
        num_cpus=48,
        num_gpus=1,
        include_dashboard=False,
        object_store_memory=400 << 20,
        runtime_env={"env_vars": environment},
    )
    with initialize_config_dir(str(Path(verl.__file__).parent / "trainer" / "config"), version_base=None):
        given = verl_arguments(load_config(recipe), recipe, folder / "data")
        config = compose("ppo_trainer", [*given, *HERE.split()])
    OmegaConf.resolve(config)
    from verl.trainer.main_ppo import TaskRunnerV1, run_ppo

    run_ppo(config, task_runner_class=TaskRunnerV1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
