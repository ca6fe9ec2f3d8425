"""Any vLLM server, of a team that uses nothing else of this library: what it can do, asked over HTTP alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import Any

from PIL import Image

from cua_agent.image_bytes import png_uri
from cua_agent.inference.vllm import wire
from cua_agent.inference.vllm.client import ControlClient
from cua_agent.inference.vllm.errors import Refused, ServerFailure, TokenDrift, Unavailable
from cua_agent.inference.vllm.plan import SERVE_COMMAND, image_limit, rank_limit, slots_for
from trainers.doctor.context import Context
from trainers.doctor.finding import Check, Finding, error, not_checked, ok, warning
from trainers.doctor.servers import TIMEOUT_S

_IDS = list(range(20, 60))
"""A prompt of plain tokens, which every vocabulary has."""
_SAMPLING = {
    "temperature": 1.0,
    "seed": 7,
    "max_tokens": 8,
    "ignore_eos": True,
    "stop_token_ids": [3],
    "logprobs": 0,
    "detokenize": False,
}
_CLOSED = (403, 404, 405)
_DEV_MODE = "start it with VLLM_SERVER_DEV_MODE=1, on a network of your own"
_TOP = 5


def endpoint_checks(url: str) -> Iterator[Check]:
    """The checks of one server, with the capability that each is for."""
    rows = (
        ("answer", "everything", answers),
        ("settings", "the rows below, and publishing full weights", settings),
        ("precision", "log-probabilities like the trainer's", precision),
        ("length", "rows of model.max_length tokens", length),
        ("log-probabilities", "ratios at any temperature", processed),
        ("adapters", "publishing LoRA without a restart", adapters),
        ("images", "a screenshot for every turn", images),
        ("token echo", "training on the very tokens that were sampled", token_echo),
        ("image echo", "models that look at the screen", image_echo),
    )
    for name, serves, look in rows:
        yield Check(name, serves, partial(look, url), () if name == "answer" else ("answer",))


def answers(url: str, _: Context) -> Finding:
    """Whether there is a vLLM server, and what it serves."""
    try:
        _call(url, wire.Call("GET", wire.HEALTH))
        models = _call(url, wire.Call("GET", wire.MODELS))["data"]
    except Unavailable as silence:
        return error(str(silence), f"start it: {SERVE_COMMAND}")
    except (Refused, KeyError, TypeError) as refusal:
        return error(
            f"{url} is no vLLM server: {refusal}", "the address of its API, without a path; VLLM_API_KEY if it has one"
        )
    return ok(f"serves {', '.join(str(model['id']) for model in models)}")


def settings(url: str, _: Context) -> Finding:
    """Whether its settings can be read; in development mode it also takes full weights."""
    if _info(url) is None:
        return warning("no /server_info: its flags cannot be read, and full weights cannot be published", _DEV_MODE)
    return ok("its flags can be read, full weights can be published")


def precision(url: str, context: Context) -> Finding:
    """The dtype that it serves in; the trainer has to have the same."""
    info, wanted = _info(url), context.config.model.dtype
    if info is None:
        return not_checked("its settings cannot be read; the trainer's model.dtype has to be the server's --dtype")
    dtype = str(info["vllm_config"]["model_config"]["dtype"]).removeprefix("torch.")
    if dtype != wanted:
        return warning(
            f"it serves {dtype}, model.dtype is {wanted}", f"train with model.dtype={dtype}, or --dtype {wanted}"
        )
    return ok(dtype)


def length(url: str, context: Context) -> Finding:
    """The longest prompt and answer together."""
    wanted = context.config.model.max_length
    served = _model(url)
    most = served.get("max_model_len") or (
        (_info(url) or {}).get("vllm_config", {}).get("model_config", {}).get("max_model_len")
    )
    if most is None:
        return not_checked("it does not say how long a conversation may be")
    if most < wanted:
        return error(
            f"{most} tokens, model.max_length is {wanted}", f"--max-model-len {wanted}, or model.max_length={most}"
        )
    return ok(f"{most} tokens")


def processed(url: str, _: Context) -> Finding:
    """Whether log-probabilities are of the distribution that was sampled: of allowed tokens they add up to 1."""
    info = _info(url)
    remedy = "--logprobs-mode processed_logprobs"
    if info is not None:
        mode = info["vllm_config"]["model_config"]["logprobs_mode"]
        return ok(str(mode)) if mode == "processed_logprobs" else error(f"logprobs_mode is {mode}", remedy)
    choices = _IDS[:8]
    try:
        answer = _call(url, wire.probe(_model(url)["id"], wire.Prompt(_IDS), choices))
        total = sum(math.exp(value) for value in wire.read_probe(answer, _IDS, choices))
    except ServerFailure as failure:
        return not_checked(f"it cannot be asked: {failure}")
    if abs(total - 1) > 0.01:
        return error(f"the probabilities of all allowed tokens add up to {total:.3f}", remedy)
    return ok("of the distribution that is sampled")


def adapters(url: str, context: Context) -> Finding:
    """Whether it takes adapters while it runs, of the run's rank, and enough of them."""
    config = context.config
    if not config.lora.enabled:
        return not_checked("lora.enabled=false: full weights are trained")
    slots = slots_for(config.rollout.max_staleness)
    flags = ["--enable-lora", f"--max-lora-rank {rank_limit(config.lora.r)}", f"--max-loras {slots}"]
    remedy = f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and {' '.join(flags)}"
    try:
        _call(url, wire.unload_adapter("doctor-no-such-adapter"))
    except Refused as refusal:
        if refusal.status in _CLOSED and "adapter" not in str(refusal):
            return error("it takes no adapters while it runs", remedy)
    info = _info(url)
    if info is None:
        return not_checked(
            f"it takes adapters; of which rank and how many, it does not say (needed: {' '.join(flags[1:])})"
        )
    lora = info["vllm_config"]["lora_config"]
    if lora is None:
        return error("it serves no adapters", remedy)
    rank, places = lora["max_lora_rank"], lora["max_loras"]
    if rank < config.lora.r:
        return error(f"adapters up to rank {rank}, lora.r is {config.lora.r}", flags[1])
    if places < slots:
        said = f"{places} adapters at a time, rollout.max_staleness={config.rollout.max_staleness} needs {slots}"
        return error(said, flags[2])
    return ok(f"{places} adapters of rank up to {rank}")


def images(url: str, context: Context) -> Finding:
    """How many screenshots a prompt may have."""
    info, rollout = _info(url), context.config.rollout
    wanted = rollout.most_screenshots
    flag = f"--limit-mm-per-prompt '{{\"image\": {wanted}}}'"
    if info is None:
        return not_checked(f"its settings cannot be read; needed: {flag}")
    most = image_limit(info["vllm_config"]["model_config"])
    if most < wanted:
        return error(f"{most} images a prompt, an episode has up to {wanted} (rollout.max_turns)", flag)
    return ok(f"{most} images a prompt")


def token_echo(url: str, _: Context) -> Finding:
    """Token ids in, token ids out; sent again with the next prompt, they are what the server reads."""
    try:
        sampled = _sample(url, _IDS)
        _sample(url, [*_IDS, *sampled])
    except Refused as refusal:
        if refusal.status in _CLOSED:
            return error(f"no tokens in and out: {refusal}", "vLLM 0.32 or newer with --enable-scale-out")
        raise
    except TokenDrift as drift:
        return error(str(drift), "no proxy that renders text between trainer and server")
    return ok(f"{len(sampled)} sampled tokens came back as they were sent")


def image_echo(url: str, _: Context) -> Finding:
    """The same question with two pictures, and without one: the answer's log-probabilities have to differ, and a
    picture has to take tokens."""
    try:
        red, blue, none = (_describe(url, colour) for colour in ("red", "blue", None))
    except Refused as refusal:
        if refusal.status in _CLOSED:
            return not_checked(f"no chat endpoint to show a picture to: {refusal}")
        return error(
            f"it takes no picture: {refusal}", "serve a model with eyes, with --limit-mm-per-prompt for images"
        )
    if red[1] <= none[1]:
        return error(
            f"a picture takes no tokens ({none[1]} without, {red[1]} with one): it is dropped",
            "no proxy that drops images",
        )
    if red[0] == blue[0]:
        return error(
            "two pictures get the same answer: it does not look at them", "serve the model with its vision tower"
        )
    return ok(f"another picture changes the answer; one takes {red[1] - none[1]} tokens")


def _sample(url: str, ids: list[int]) -> list[int]:
    answer = _call(url, wire.generate(_model(url)["id"], wire.Prompt(ids), _SAMPLING))
    generation = wire.read_generation(answer)
    wire.check_prompt(ids, generation.prompt_ids)
    return generation.output_ids


def _describe(url: str, colour: str | None) -> tuple[dict[str, float], int]:
    """The likeliest first tokens with their log-probabilities, and the length of the prompt."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": "What colour is this?"}]
    if colour is not None:
        parts.insert(0, {"type": "image_url", "image_url": {"url": _picture(colour)}})
    body = {
        "model": _model(url)["id"],
        "messages": [{"role": "user", "content": parts}],
        "temperature": 0.0,
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": _TOP,
    }
    answer = _call(url, wire.Call("POST", "/v1/chat/completions", body))
    try:
        top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return {str(entry["token"]): float(entry["logprob"]) for entry in top}, int(answer["usage"]["prompt_tokens"])
    except (KeyError, IndexError, TypeError, ValueError) as problem:
        raise ServerFailure(f"the server's answer cannot be read: {type(problem).__name__} {problem}") from problem


def _picture(colour: str) -> str:
    return png_uri(Image.new("RGB", (96, 64), colour))


def _model(url: str) -> Mapping[str, Any]:
    """What `/v1/models` says of the base model."""
    models: list[Mapping[str, Any]] = _call(url, wire.Call("GET", wire.MODELS))["data"]
    return next(model for model in models if not model.get("parent"))


def _info(url: str) -> Mapping[str, Any] | None:
    """`/server_info`; None where the server does not tell."""
    try:
        info: Any = _call(url, wire.Call("GET", wire.SERVER_INFO, query={"config_format": "json"}))
    except Refused:
        return None
    return info if isinstance(info, Mapping) and "vllm_config" in info else None


def _call(url: str, call: wire.Call) -> Any:
    with closing(ControlClient(url, TIMEOUT_S)) as client:
        return client.call(call)
