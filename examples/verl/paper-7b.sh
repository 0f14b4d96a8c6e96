#!/bin/sh
# One node of 8 GPUs with 80 GB; a step of 2048 trajectories of up to 20480 tokens. Not yet run: memory, time and
# results are not known. Further arguments go to verl:  sh examples/verl/paper-7b.sh trainer.nnodes=2
set -eu
recipe=examples/verl/paper-7b.yaml data=${DATA:-data/agent-rl}
[ -f "$data/train.parquet" ] || python -m elpo.adapters.verl.rows $recipe "$data"
settings=$(python -m elpo.adapters.verl.settings $recipe "$data")
python -c 'import elpo.adapters.verl.trainer'  # verl would hide what is wrong with it
exec python -m verl.trainer.main_ppo $settings \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.tensor_model_parallel_size=2 \
    actor_rollout_ref.rollout.gpu_memory_utilization=0.7 \
    actor_rollout_ref.rollout.max_model_len=20480 \
    actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=True \
    actor_rollout_ref.actor.strategy=fsdp2 \
    actor_rollout_ref.actor.use_dynamic_bsz=True \
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=20480 \
    actor_rollout_ref.model.enable_gradient_checkpointing=True \
    trainer.project_name=elpo trainer.experiment_name=paper-7b \
    trainer.n_gpus_per_node=8 trainer.nnodes=1 trainer.save_freq=20 trainer.test_freq=20 "$@"
