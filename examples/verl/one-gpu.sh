#!/bin/sh
# One GPU with 24 GB or more. Not yet run: memory, time and results are not known. Further arguments go to verl.
set -eu
recipe=examples/verl/one-gpu.yaml data=${DATA:-data/gsm8k}
[ -f "$data/train.parquet" ] || python -m elpo.adapters.verl.rows $recipe "$data"
settings=$(python -m elpo.adapters.verl.settings $recipe "$data")
python -c 'import elpo.adapters.verl.trainer'  # verl would hide what is wrong with it
exec python -m verl.trainer.main_ppo $settings \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
    actor_rollout_ref.rollout.gpu_memory_utilization=0.4 \
    actor_rollout_ref.rollout.max_model_len=4096 \
    actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=True \
    actor_rollout_ref.rollout.agent.num_workers=2 \
    actor_rollout_ref.actor.strategy=fsdp2 \
    actor_rollout_ref.actor.use_dynamic_bsz=True \
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384 \
    actor_rollout_ref.model.enable_gradient_checkpointing=True \
    trainer.project_name=elpo trainer.experiment_name=one-gpu \
    trainer.n_gpus_per_node=1 trainer.nnodes=1 trainer.save_freq=50 trainer.test_freq=20 "$@"
