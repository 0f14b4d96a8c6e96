"""One typed object describes a run; every mistake in it is found before a model loads.

Recipes are YAML files of it (`elpo.recipes`). Defaults are the paper's where it gives one (Appendix,
hyper-parameters) and DemyAgent's, its base recipe, where it does not (`docs/PAPER.md`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from elpo.algorithm_config import AlgorithmConfig
from elpo.schema import Count, Decay, Flag, Fraction, NonNegativeFloat, Positive, PositiveFloat, Section


class TinyModelConfig(Section):
    """A Qwen3-architecture model built from scratch, with a tokenizer trained on the task's own text."""

    hidden_size: Positive = 128
    num_layers: Positive = 4
    num_heads: Positive = 4
    num_kv_heads: Positive = 2
    intermediate_size: Positive = 384

    @model_validator(mode="after")
    def _head_shapes(self) -> TinyModelConfig:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of 2 * num_heads = {2 * self.num_heads}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        return self


class LoraConfig(Section):
    """Low-rank adapters of PEFT on the linear layers; with `rank` 0 all weights are trained.

    No `target_modules`: every linear layer but the vocabulary's. `quantized` keeps the frozen weights in 4
    bits (QLoRA), which needs bitsandbytes and CUDA. Dropout makes the trainer's policy differ from the
    sampler's.
    """

    rank: Count = 0
    alpha: PositiveFloat = 32.0
    dropout: Decay = 0.0
    target_modules: tuple[str, ...] = ()
    quantized: Flag = False

    @model_validator(mode="after")
    def _quantized_weights_are_frozen(self) -> LoraConfig:
        if self.quantized and not self.rank:
            raise ValueError("quantized weights cannot be trained; set rank, for example to 16")
        return self


class ModelConfig(Section):
    """`path` is a model folder or hub name; without one the tiny model is built from scratch.

    `dtype` is what is computed in. Weights that are trained are always kept in float32, since steps of 1e-6
    are lost in bfloat16; frozen weights, those below adapters, are kept in `dtype`.
    """

    path: str | None = None
    tiny: TinyModelConfig = TinyModelConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora: LoraConfig = LoraConfig()
    gradient_checkpointing: Flag = False  # less memory for activations, a third more computation in training
    # What training forwards: every token of a tree once, or a padded row for each trajectory. Equal but for
    # rounding. "auto" is "tree" wherever the model can.
    packing: Literal["auto", "tree", "rows"] = "auto"


class TaskConfig(Section):
    """`name` is a built-in task or `module:Class`; `options` are checked by the task itself."""

    name: str = "ledger"
    options: dict[str, Any] = {}


class PythonToolConfig(Section):
    """The Python tool: limits of one call (seconds, megabytes, characters), and what persists between calls.

    `state` "none": nothing, the field's convention; "session": the interpreter's state, throughout a rollout;
    "task": as the task's attribute `python_state` says, nothing where it has none.
    """

    state: Literal["task", "none", "session"] = "task"
    timeout: PositiveFloat = 5.0
    memory_mb: Positive = 2048
    output_chars: Positive = 4000
    num_workers: Positive = 1
    preload: tuple[str, ...] = ()


class SearchToolConfig(Section):
    """The corpus of the search tool and how much of it a result shows; seconds, characters.

    `index` is a file made by `elpo index`; without one, the task's own documents are searched. `bm25s` keeps
    the scores in memory. `http` asks the retrieval server at `url`, such as Search-R1's.
    """

    backend: Literal["sqlite", "bm25s", "http"] = "sqlite"
    index: str | None = None
    url: str | None = None
    top_k: Positive = 3
    timeout: PositiveFloat = 10.0
    output_chars: Annotated[int, Field(ge=80, strict=True)] = 4000

    @model_validator(mode="after")
    def _one_corpus(self) -> SearchToolConfig:
        if self.backend == "http" and (self.url is None or self.index is not None):
            raise ValueError("backend http needs a url such as http://host:8000/retrieve, and no index")
        if self.backend != "http" and self.url is not None:
            raise ValueError(f"backend {self.backend} asks no server; remove url or set backend to http")
        return self


class RolloutConfig(Section):
    """Limits of one trajectory and of the engine. `temperature` is that of training and evaluation."""

    engine: Literal["transformers", "vllm"] = "transformers"
    num_slots: Positive = 64
    max_turns: Positive = 16
    max_tokens: Positive = 20480  # prompt, turns and feedback together
    max_turn_tokens: Positive = 4096
    temperature: PositiveFloat = 1.0
    prefix_cache_mb: Count = 2048
    deterministic: Flag = True  # False: decode while tools run; batches then vary from run to run

    @model_validator(mode="after")
    def _turn_fits(self) -> RolloutConfig:
        if self.max_turn_tokens > self.max_tokens:
            raise ValueError(f"max_turn_tokens {self.max_turn_tokens} is above max_tokens {self.max_tokens}")
        return self


class VllmConfig(Section):
    """For `rollout.engine` vllm. With a `url`, the server there samples; without, an engine in this process,
    in its share of the GPU's memory (of all memory where there is no GPU), with `arguments` for vLLM's own
    `EngineArgs`. Entropies are made from the `top_k` most likely tokens.
    """

    url: str | None = None
    top_k: Annotated[int, Field(ge=1, le=19, strict=True)] = 19
    gpu_memory_utilization: Fraction = 0.4
    arguments: dict[str, Any] = {}


class OptimizerConfig(Section):
    """AdamW with linear warm-up; the rate is then constant or follows a half cosine to zero."""

    learning_rate: PositiveFloat = 1e-6
    weight_decay: NonNegativeFloat = 0.0
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    max_grad_norm: PositiveFloat = 1.0
    warmup_steps: Count = 0
    schedule: Literal["constant", "cosine"] = "constant"


class SFTConfig(Section):
    """Cold start on demonstrations. `num_steps` 0 skips it.

    `path` has them as rows of `messages` (`elpo.tasks.conversations`); without one the task gives its own.
    `rename_tools` says what tools of the data are called here, such as `{code_interpreter: python}`.
    """

    num_steps: Count = 0
    path: str | None = None
    rename_tools: dict[str, str] = {}
    num_demonstrations: Positive = 2000
    batch_size: Positive = 32
    microbatch_tokens: Positive = 16384
    checkpoint_every: Positive = 200
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5, warmup_steps=10, schedule="cosine")


class RLConfig(Section):
    """One step: `problems_per_step` trees are grown, then trained on in mini-batches of whole trees.

    More than one mini-batch makes the later updates off-policy, which is where clipping acts.
    """

    num_steps: Count = 100
    num_problems: Positive = 10_000  # training problems asked of the task; it may have fewer
    problems_per_step: Positive = 128
    problems_per_minibatch: Positive = 16
    num_epochs: Positive = 1
    microbatch_tokens: Positive = 16384
    max_rollouts: Positive | None = None  # of the run: no step is begun that they would not pay for
    # Log-probabilities of the policy that sampled: the sampler's own, or one more forward pass. "auto" is the
    # sampler's while it agrees with the trainer, which the first step finds out.
    old_logprobs: Literal["auto", "sampler", "recompute"] = "auto"
    optimizer: OptimizerConfig = OptimizerConfig()

    @model_validator(mode="after")
    def _whole_minibatches(self) -> RLConfig:
        if self.problems_per_step % self.problems_per_minibatch:
            raise ValueError(
                f"problems_per_step {self.problems_per_step} is not a multiple of "
                f"problems_per_minibatch {self.problems_per_minibatch}"
            )
        return self


class EvaluationConfig(Section):
    """Held-out success during training: every `every` RL steps (0: only before and after)."""

    every: Count = 10
    num_problems: Positive = 64
    samples_per_problem: Positive = 2


class RunConfig(Section):
    """Where and how a run lives. `seed` decides everything random in it."""

    dir: str = "runs/elpo"
    seed: Count = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_every: Positive = 10
    trees_every: Positive = 5
    trees_kept: Positive = 4  # trees written at each such step, and at each evaluation
    tensorboard: Flag = True
    wandb: Flag = False  # Weights & Biases; needs the extra wandb
    trackio: Flag = False  # needs the extra trackio


class Config(Section):
    """Everything `elpo train` needs."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    python: PythonToolConfig = PythonToolConfig()
    search: SearchToolConfig = SearchToolConfig()
    rollout: RolloutConfig = RolloutConfig()
    vllm: VllmConfig = VllmConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    sft: SFTConfig = SFTConfig()
    rl: RLConfig = RLConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _a_step_can_be_paid(self) -> Config:
        step = self.rl.problems_per_step * self.algorithm.num_rollouts
        if self.rl.max_rollouts is not None and self.rl.max_rollouts < step:
            raise ValueError(f"rl.max_rollouts {self.rl.max_rollouts} is less than one step needs: {step}")
        return self
