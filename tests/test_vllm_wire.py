"""Requests to vLLM and its answers as plain data, without a server."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cua_agent.inference.base import GenerateRequest
from cua_agent.inference.vllm import wire
from cua_agent.inference.vllm.adapter_registry import AdapterRegistry
from cua_agent.inference.vllm.errors import ServerFailure, ServerMismatch, TokenDrift, Unavailable
from cua_agent.inference.vllm.plan import check_server, rank_limit, slots_for
from tests.vllm_fakes import plan, server_info
from trainers.config import ConfigError
from trainers.config.compose import load_config

PAD = 9


def test_each_run_of_placeholders_becomes_one() -> None:
    ids = [1, PAD, PAD, PAD, 2, PAD, 3]
    assert wire.collapse(ids, PAD, [3, 1]) == [1, PAD, 2, PAD, 3]
    assert wire.collapse([1, 2], PAD, []) == [1, 2]
    assert wire.collapse([PAD, PAD, PAD], PAD, [2, 1]) == [PAD, PAD]  # side by side


@pytest.mark.parametrize("counts", [[], [2], [4], [3, 1, 1], [1, 3]])
def test_placeholders_must_match_the_images(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="image placeholders"):
        wire.collapse([1, PAD, PAD, PAD, 2, PAD, 3], PAD, counts)


@given(st.lists(st.one_of(st.integers(0, PAD - 1), st.tuples(st.just(PAD), st.integers(1, 5)))))
def test_collapsing_is_undone_by_expanding(parts: list[Any]) -> None:
    counts = [part[1] for part in parts if isinstance(part, tuple)]
    full = [i for part in parts for i in ([PAD] * part[1] if isinstance(part, tuple) else [part])]
    expanded, images = [], iter(counts)
    for token in wire.collapse(full, PAD, counts):
        expanded += [PAD] * next(images) if token == PAD else [token]
    assert expanded == full


def test_sampling_bans_tokens_and_stops_where_a_turn_ends_only() -> None:
    request = GenerateRequest("c", [1], [], 5, temperature=0.7, seed=3)
    sampling = wire.sampling_params(request, 4, stop_ids=(8, 9), banned=[7, PAD])
    assert sampling["temperature"] == 0.7
    assert (sampling["seed"], sampling["max_tokens"], sampling["logprobs"]) == (3, 4, 0)
    assert sampling["stop_token_ids"] == [8, 9]
    assert sampling["ignore_eos"]
    assert sampling["logit_bias"] == {"7": -1e9, "9": -1e9}
    greedy = GenerateRequest("c", [1], [], 5, temperature=0.7, greedy=True)
    assert wire.sampling_params(greedy, 4, (8,), [])["temperature"] == 0.0


def test_a_banned_token_has_no_probability_at_any_temperature_that_is_allowed() -> None:
    logits = np.array([0.0, 30.0], np.float32) + np.array([0.0, wire.BANNED_BIAS], np.float32)
    probabilities = np.exp((logits / wire.MAX_TEMPERATURE) - (logits / wire.MAX_TEMPERATURE).max())
    assert probabilities.tolist() == [1.0, 0.0]


def test_a_call_for_a_generation() -> None:
    call = wire.generate(
        "policy-v3", wire.Prompt([1, PAD, PAD], [wire.SentImage("a", "data:x"), wire.SentImage("b")]), {"n": 1}
    )
    assert (call.method, call.path) == ("POST", "/inference/v1/generate")
    assert call.body == {
        "model": "policy-v3",
        "token_ids": [1, PAD, PAD],
        "sampling_params": {"n": 1},
        "return_token_ids": True,
        "content_parts": [
            {"type": "image_url", "uuid": "a", "url": "data:x"},
            {"type": "image_url", "uuid": "b", "url": None},
        ],
    }
    text = wire.generate("m", wire.Prompt([1]), {})
    assert "content_parts" not in (text.body or {})


def answer(**changes: Any) -> dict[str, Any]:
    choice = {
        "token_ids": [4, 8],
        "logprobs": {"content": [{"token_id": 4, "logprob": -0.5}, {"token_id": 8, "logprob": -0.25}]},
        "finish_reason": "stop",
        "weight_versions": [{"version": "a", "start": 0, "end": 1}, {"version": "b", "start": 1, "end": 2}],
    }
    return {"model": "policy-v3", "prompt_token_ids": [1, PAD, PAD], "choices": [choice | changes]}


def test_reading_a_generation() -> None:
    generation = wire.read_generation(answer())
    assert generation.prompt_ids == [1, PAD, PAD]
    assert generation.output_ids == [4, 8]
    assert generation.logprobs == [-0.5, -0.25]
    assert generation.stop_reason == "stop"
    assert generation.weights == [("a", 1), ("b", 1)]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"finish_reason": "abort"}, Unavailable),
        ({"token_ids": [4, 7]}, Unavailable),
        ({"token_ids": [4]}, Unavailable),
        ({"logprobs": None}, Unavailable),
        (
            {"logprobs": {"content": [{"token_id": 4, "logprob": -9999.0}, {"token_id": 8, "logprob": 0.0}]}},
            ServerFailure,
        ),
        ({"weight_versions": [{"version": "a", "start": 0, "end": 1}]}, Unavailable),
    ],
)
def test_what_cannot_be_trained_on_is_refused(changes: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        wire.read_generation(answer(**changes))


def test_an_answer_of_another_shape_may_be_whole_the_next_time() -> None:
    stranger: Any = (
        {},
        [],
        "<html>",
        None,
        3,
        {"choices": []},
        {"choices": [{}], "model": "m", "prompt_token_ids": []},
    )
    for strange in stranger:
        with pytest.raises(Unavailable):
            wire.read_generation(strange)


def test_drift_names_its_place() -> None:
    wire.check_prompt([1, 2, 3], [1, 2, 3])
    with pytest.raises(TokenDrift, match="2 tokens, ours 3, different from position 2"):
        wire.check_prompt([1, 2, 3], [1, 2])
    with pytest.raises(TokenDrift, match="different from position 1"):
        wire.check_prompt([1, 2, 3], [1, 9, 3])


def test_a_probe_reads_the_choices_in_their_order() -> None:
    content = {"token_id": 7, "logprob": -0.1, "top_logprobs": [{"token_id": 7, "logprob": -0.1}]}
    content["top_logprobs"].append({"token_id": 3, "logprob": -2.0})  # type: ignore[attr-defined]
    probed = {"prompt_token_ids": [5, 6], "choices": [{"logprobs": {"content": [content]}}]}
    assert wire.read_probe(probed, [5, 6], [3, 7]) == [-2.0, -0.1]
    with pytest.raises(TokenDrift):
        wire.read_probe(probed, [5, 8], [3, 7])
    with pytest.raises(Unavailable):
        wire.read_probe(probed, [5, 6], [3, 4])


def test_a_name_never_gets_other_weights(tmp_path: Any) -> None:
    publications = AdapterRegistry("run-abc")
    names = [publications.add(version, tmp_path).name for version in (0, 1, 0, 0, 2)]
    assert names == ["run-abc-v0", "run-abc-v1", "run-abc-v0.1", "run-abc-v0.2", "run-abc-v2"]
    assert publications.version_of("run-abc-v0.2") == 0
    assert publications.version_of("run-abc-v7") is None


def test_weights_stay_while_a_request_needs_them(tmp_path: Any) -> None:
    publications = AdapterRegistry("run-abc")
    first = publications.add(0, tmp_path)
    publications.announce(first)
    with publications.in_use() as used, publications.in_use():
        second = publications.add(1, tmp_path)
        assert publications.current is first  # not announced yet
        publications.announce(second)
        assert used is first
        assert publications.take_unneeded() == []
    assert publications.take_unneeded() == [first]
    assert publications.take_unneeded() == []
    assert publications.version_of(first.name) is None
    assert publications.take_all() == [second]


def test_nothing_is_served_before_a_publication() -> None:
    with pytest.raises(RuntimeError, match="update_weights"), AdapterRegistry("run-abc").in_use():
        pass


def test_a_server_that_fits_passes() -> None:
    check_server("http://s", server_info(), plan())
    check_server("http://s", server_info(lora=None), plan(lora_rank=None))


@pytest.mark.parametrize(
    ("info", "flag"),
    [
        (server_info(logprobs_mode="raw_logprobs"), "--logprobs-mode processed_logprobs"),
        (server_info(max_model_len=100), "--max-model-len 512"),
        (server_info(images=1), "--limit-mm-per-prompt"),
        (server_info(lora=None), "--enable-lora"),
        (server_info(lora={"max_lora_rank": 1, "max_loras": 2}), "--max-lora-rank 8"),
        (server_info(lora={"max_lora_rank": 8, "max_loras": 1}), "--max-loras 2"),
        (server_info(env={}), "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
    ],
)
def test_a_server_that_does_not_fit_is_told_the_flag(info: dict[str, Any], flag: str) -> None:
    with pytest.raises(ServerMismatch, match="http://s must be started with") as refusal:
        check_server("http://s", info, plan())
    assert flag in str(refusal.value)


def test_a_server_of_another_dtype_is_refused_in_one_line() -> None:
    with pytest.raises(ServerMismatch) as refusal:
        check_server("http://s", server_info(dtype="torch.bfloat16"), plan())
    message = str(refusal.value)
    assert "\n" not in message
    assert "serves bfloat16, the trainer's model.dtype is float32: set model.dtype=bfloat16, or start" in message


def test_limits_of_adapters() -> None:
    assert [rank_limit(rank) for rank in (1, 2, 8, 9, 512)] == [1, 8, 8, 16, 512]
    assert slots_for(0) == 2
    with pytest.raises(ServerMismatch, match=r"lora\.r=513"):
        rank_limit(513)


@pytest.mark.parametrize("override", ["rollout.temperature=2.5", "lora.r=513"])
def test_what_vllm_cannot_serve_is_refused_before_any_model_is_loaded(override: str) -> None:
    load_config([override, "lora.enabled=true"])
    with pytest.raises(ConfigError, match=f"{override} with inference=vllm: at most"):
        load_config(["inference=vllm", "lora.enabled=true", override])
