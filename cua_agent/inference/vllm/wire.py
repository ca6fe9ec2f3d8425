"""vLLM's HTTP interface as data: calls to make and answers to read, without any transport.

Sampling goes through `/inference/v1/generate`: token ids in, token ids out, screenshots beside them. The ids carry one
placeholder per screenshot, which the server expands by itself; it reports the ids that it really saw, and they must be
ours. Banned tokens get a bias that no logit outweighs, which makes their probability exactly 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cua_agent.inference.base import GenerateRequest, StopReason
from cua_agent.inference.vllm.errors import ServerFailure, TokenDrift, Unavailable

MAX_TEMPERATURE = 2.0
"""vLLM refuses more."""
BANNED_BIAS = -1e9
LOWEST_LOGPROB = -9999.0
"""What vLLM writes for minus infinity and for NaN."""

IMAGE_MISSING = "Cache miss for image"
"""Part of the refusal of an image that was named only and is not known."""

HEALTH = "/health"
MODELS = "/v1/models"
SERVER_INFO = "/server_info"
WEIGHT_INFO = "/weight_info"


@dataclass(frozen=True)
class Call:
    """One HTTP request: `path` below the server's address, `body` sent as JSON, `query` as the query string."""

    method: Literal["GET", "POST"]
    path: str
    body: Mapping[str, Any] | None = field(default=None, repr=False)
    query: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SentImage:
    """An image of a prompt: what the server keeps it under, and a data URL, or None where the server has it."""

    name: str
    url: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Prompt:
    """A prompt as the server takes it: one placeholder per screenshot in `token_ids`, `images` in their order."""

    token_ids: list[int]
    images: Sequence[SentImage] = field(default=(), repr=False)


@dataclass(frozen=True)
class Generation:
    """A server's answer. `weights` are (tag, number of tokens) in order: which weights sampled which tokens."""

    model: str
    prompt_ids: list[int] = field(repr=False)
    output_ids: list[int]
    logprobs: list[float]
    stop_reason: StopReason
    weights: list[tuple[str, int]]


def collapse(input_ids: Sequence[int], placeholder: int, counts: Sequence[int]) -> list[int]:
    """`input_ids` with each image's run of `counts[i]` placeholders replaced by a single one.

    Raises `ValueError` when placeholders and images do not match.
    """
    ids: list[int] = []
    position = 0
    for count in counts:
        start = _find(input_ids, placeholder, position)
        if start is None or list(input_ids[start : start + count]) != [placeholder] * count:
            raise ValueError(f"the prompt has no run of {count} image placeholders from position {position} on")
        ids += [*input_ids[position:start], placeholder]
        position = start + count
    if _find(input_ids, placeholder, position) is not None:
        raise ValueError(f"the prompt has more image placeholders than its {len(counts)} images need")
    return [*ids, *input_ids[position:]]


def _find(ids: Sequence[int], wanted: int, start: int) -> int | None:
    try:
        return ids.index(wanted, start)
    except ValueError:
        return None


def sampling_params(
    request: GenerateRequest, max_tokens: int, stop_ids: Sequence[int], banned: Sequence[int]
) -> dict[str, Any]:
    """How to sample: only `stop_ids` end a turn, banned tokens never come, one log-probability per token."""
    return {
        "temperature": 0.0 if request.greedy else request.temperature,
        "seed": request.seed,
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stop_token_ids": list(stop_ids),
        "logit_bias": {str(token): BANNED_BIAS for token in banned},
        "logprobs": 0,
        "detokenize": False,
    }


def generate(model: str, prompt: Prompt, sampling: Mapping[str, Any]) -> Call:
    """Sample one turn of token ids and images."""
    body: dict[str, Any] = {
        "model": model,
        "token_ids": prompt.token_ids,
        "sampling_params": dict(sampling),
        "return_token_ids": True,
    }
    if prompt.images:
        body["content_parts"] = [{"type": "image_url", "uuid": image.name, "url": image.url} for image in prompt.images]
    return Call("POST", "/inference/v1/generate", body)


def read_generation(answer: Mapping[str, Any]) -> Generation:
    """Raises `Unavailable` for an answer that the server broke off, or that lacks something: the next may be whole. A
    server whose log-probabilities are no numbers is broken: `ServerFailure`."""
    try:
        choice = answer["choices"][0]
        output_ids = [int(token) for token in choice["token_ids"]]
        entries = choice["logprobs"]["content"] or []
        finish = choice["finish_reason"]
        spans = choice["weight_versions"] or []
        generation = Generation(
            model=str(answer["model"]),
            prompt_ids=[int(token) for token in answer["prompt_token_ids"]],
            output_ids=output_ids,
            logprobs=[float(entry["logprob"]) for entry in entries],
            stop_reason="stop" if finish == "stop" else "length",
            weights=[(str(span["version"]), int(span["end"]) - int(span["start"])) for span in spans],
        )
        reported = [int(entry["token_id"]) for entry in entries]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise Unavailable(f"the server's answer cannot be read: {type(error).__name__} {error}") from error
    if finish not in ("stop", "length"):
        raise Unavailable(f"the server broke the request off: finish_reason={finish!r}")
    if reported != output_ids:
        raise Unavailable(f"log-probabilities of {len(reported)} tokens came with {len(output_ids)} other tokens")
    if not all(math.isfinite(value) and value > LOWEST_LOGPROB for value in generation.logprobs):
        raise ServerFailure("the server's log-probabilities are not finite")
    if sum(count for _, count in generation.weights) != len(output_ids):
        raise Unavailable(f"the server names the weights of {generation.weights} tokens, not of {len(output_ids)}")
    return generation


def check_prompt(ours: Sequence[int], theirs: Sequence[int]) -> None:
    """Raises `TokenDrift` at the first token in which the server's prompt differs from ours."""
    if list(ours) == list(theirs):
        return
    pairs = zip(ours, theirs, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
    raise TokenDrift(
        f"token drift: the server's prompt has {len(theirs)} tokens, ours {len(ours)}, different from position {at}"
    )


def probe(model: str, prompt: Prompt, choices: Sequence[int]) -> Call:
    """Ask for the log-probabilities of `choices` as the next token, no other token being allowed, at temperature 1.

    (vLLM can score a prompt as well, but not with an adapter while it serves other requests: its engine dies of that.)
    """
    sampling = {
        "temperature": 1.0,
        "seed": 0,
        "max_tokens": 1,
        "ignore_eos": True,
        "allowed_token_ids": list(choices),
        "logprobs": len(choices),
        "detokenize": False,
    }
    return generate(model, prompt, sampling)


def read_probe(answer: Mapping[str, Any], ids: Sequence[int], choices: Sequence[int]) -> list[float]:
    """Log-probabilities in the order of `choices`. Raises `TokenDrift` and `Unavailable`."""
    try:
        check_prompt(ids, [int(token) for token in answer["prompt_token_ids"]])
        (sampled,) = answer["choices"][0]["logprobs"]["content"]
        scores = {int(entry["token_id"]): float(entry["logprob"]) for entry in [sampled, *sampled["top_logprobs"]]}
        return [scores[token] for token in choices]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise Unavailable(f"the server's scores cannot be read: {type(error).__name__} {error}") from error


def server_info() -> Call:
    """The server's configuration and environment."""
    return Call("GET", SERVER_INFO, query={"config_format": "json"})


def load_adapter(name: str, directory: str) -> Call:
    """Never in place: requests in flight would mix two adapters."""
    return Call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": directory})


def unload_adapter(name: str) -> Call:
    """Requests in flight on it finish unchanged."""
    return Call("POST", "/v1/unload_lora_adapter", {"lora_name": name})


def pause() -> Call:
    """Freeze requests where they are; those that come while paused wait."""
    return Call("POST", "/pause", query={"mode": "keep"})


def resume() -> Call:
    """Go on after `pause`."""
    return Call("POST", "/resume")


def reload_weights(method: str, directory: str) -> Call:
    """Full weights from a directory, by the worker's `method`."""
    return Call("POST", "/collective_rpc", {"method": method, "kwargs": {"weights_path": directory}})


def reset_caches() -> list[Call]:
    """Everything that was computed with former weights; frozen requests are computed anew when they resume."""
    return [
        Call("POST", "/reset_prefix_cache", query={"reset_running_requests": "true"}),
        Call("POST", "/reset_encoder_cache"),
        Call("POST", "/reset_mm_cache"),
    ]


def tag_weights(tag: str) -> Call:
    """Name the weights in place; every token sampled from now on is reported with `tag`."""
    return Call("POST", "/update_weight_version", {"new_version": tag})


def begin_transfer() -> Call:
    """Weights will come out of the trainer's GPU memory, many at a time."""
    return Call("POST", "/init_weight_transfer_engine", {"init_info": {"packed": True}})


def start_transfer() -> Call:
    """Weights begin to come."""
    return Call("POST", "/start_weight_update")


def transfer(part: Mapping[str, Any]) -> Call:
    """Take `part` of them."""
    return Call("POST", "/update_weights", {"update_info": dict(part)})


def finish_transfer() -> Call:
    """All have come."""
    return Call("POST", "/finish_weight_update")
