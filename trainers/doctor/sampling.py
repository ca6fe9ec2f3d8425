"""Whatever samples the policy: its tokens come back as they were sent, an image counts, new weights arrive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cua_agent.inference.base import GenerateRequest, GenerateResponse
from cua_agent.inference.forward import without_training
from cua_agent.inference.vllm.canary import tolerance_for
from cua_agent.inference.vllm.errors import TokenDrift
from cua_agent.prompts import first_prompt, next_prompt, system_prompt
from cua_agent.trajectory import Outcome, Trajectory
from trainers.config import TrainConfig
from trainers.doctor.context import Context
from trainers.doctor.finding import Finding, error, not_checked, ok
from trainers.grpo.batching import collate, weigh_rows
from trainers.grpo.forward import score_tokens
from trainers.protocol import Batch

if TYPE_CHECKING:
    from cua_agent.models.policy import PolicyModel

_SCREEN = (64, 96)
_TOKENS = 8
_NUDGE = 0.05
_SAME = 1e-6
"""Log-probabilities this close come from one and the same computation."""
_GOAL = "Open the settings."
_SERVE = "python -m cua_agent.inference.vllm serve"


def canary(context: Context) -> Finding:
    """The engine serves the policy as it is: of vLLM a canary prompt is asked, with a screenshot."""
    engine = context.engine
    if context.config.inference.name == "vllm":
        return ok("the servers took the weights, and the canary's log-probabilities are the trainer's")
    return ok(f"in process, version {engine.version}")


def token_echo(context: Context) -> Finding:
    """Two turns of a conversation: the second one's prompt holds the first one's sampled tokens."""
    first = opening(context.policy, context.config)
    try:
        answer = _ask(context, first)
        if not answer.output_ids:
            return error("the engine sampled no token", "raise model.max_length or rollout.max_new_tokens")
        turn = next_prompt("", 0, ended=answer.stop_reason == "stop", prefix=context.policy.reply_prefix)
        second = replace(first, input_ids=[*first.input_ids, *answer.output_ids, *context.policy.encode(turn)], seed=1)
        again = _ask(context, second)
    except TokenDrift as drift:
        return error(str(drift), f"a server that takes and returns token ids, such as {_SERVE}")
    sampled = len(answer.output_ids)
    return ok(f"{sampled} sampled tokens came back as they were sent, {len(again.output_ids)} followed them")


def image_echo(context: Context) -> Finding:
    """The same words with two pictures: how likely the same tokens are has to differ, as it does for the trainer."""
    policy, config = context.policy, context.config
    if not policy.reads_images:
        return not_checked(f"model.path={config.model.path} reads no images")
    requests = [replace(opening(policy, config, picture), conversation_id=f"doctor-{picture}") for picture in (0, 1)]
    answers = [_ask(context, request) for request in requests]
    ours, swapped = (logprobs(policy, config, requests[i], answers[0]) for i in (0, 1))
    if float((ours - swapped).abs().max()) < _SAME:
        return not_checked("the model's first tokens do not depend on the picture")
    if answers[0].output_ids == answers[1].output_ids and np.allclose(
        answers[0].logprobs, answers[1].logprobs, rtol=0, atol=_SAME
    ):
        return error(
            "two different screenshots got the same answer: the engine does not look at them",
            f"serve the model with its vision tower and without a proxy that drops images: {_SERVE}",
        )
    gap = max(_gap(policy, config, *pair) for pair in zip(requests, answers, strict=True))
    if not gap <= _tolerance(context):
        return error(
            f"with a screenshot the engine's log-probabilities are {gap:.2g} from the trainer's (tolerance "
            f"{_tolerance(context):g}): it sees other pixels",
            "serve the very model of model.path, with its preprocessor_config.json",
        )
    return ok(f"another screenshot changes the answer; {gap:.1g} from the trainer's log-probabilities")


def weights_arrive(context: Context) -> Finding:
    """One round trip: weights that are changed a little are published, sampled from, and put back."""
    policy, config, engine = context.policy, context.config, context.engine
    version, request = engine.version, opening(policy, config)
    before = _ask(context, request)
    untouched = logprobs(policy, config, request, before)
    with nudged(policy):
        moved = float((logprobs(policy, config, request, before) - untouched).abs().mean())
        engine.update_weights(version + 1)
        answer = _ask(context, replace(request, conversation_id="doctor-after"))
        gap = _gap(policy, config, request, answer)
    engine.update_weights(version + 2)
    what = "the adapter" if policy.has_adapter else "the weights"
    if moved < _SAME:
        return not_checked(f"changing {what} a little moved no log-probability")
    if not gap <= _tolerance(context) or set(answer.versions) - {version + 1}:
        return error(
            f"{what} moved the trainer's log-probabilities by {moved:.2g}, and the engine is {gap:.2g} from them: it "
            "does not sample from what is published",
            f"one server per address, without a cache of answers before it: {_SERVE}",
        )
    return ok(f"{what} moved by {moved:.2g} and the engine followed to {gap:.1g}; put back")


def opening(policy: PolicyModel, config: TrainConfig, picture: int = 0) -> GenerateRequest:
    """The first turn of an episode, in the agent's own words, with one of two pictures when the policy has eyes."""
    model = config.model
    images, count = [], 0
    if policy.reads_images:
        rows, columns = np.indices(_SCREEN)
        shapes = (np.stack([rows * 2, columns * 2, (rows > columns) * 255], -1), np.full((*_SCREEN, 3), 200))
        images, count = [shapes[picture].astype(np.uint8)], policy.image_tokens(*_SCREEN)
    system = system_prompt(model.prompt, model.grounding, policy.coordinates or "relative")
    words = first_prompt(system, _GOAL, count, prefix=policy.reply_prefix)
    length = min(_TOKENS, config.rollout.max_new_tokens)
    return GenerateRequest("doctor", policy.encode(words), images, length, config.rollout.temperature)


def logprobs(policy: PolicyModel, config: TrainConfig, request: GenerateRequest, answer: GenerateResponse) -> Tensor:
    """The trainer's log-probabilities of what was answered, float32 [N]."""
    return trained_scores(policy, config, _as_row(request, answer))


def logprob_gap(policy: PolicyModel, config: TrainConfig, rows: Sequence[Trajectory]) -> float:
    """Mean exp|difference| of the log-probabilities of all sampled tokens, of training and of sampling; NaN when none
    was sampled."""
    gaps = []
    for row in rows:
        if row.loss_mask.any():
            sampled = torch.from_numpy(row.logprobs[row.loss_mask.astype(bool)])
            gaps.append((trained_scores(policy, config, row) - sampled).abs().exp())
    return float(torch.cat(gaps).mean()) if gaps else float("nan")


def trained_scores(policy: PolicyModel, config: TrainConfig, row: Trajectory) -> Tensor:
    """Log-probabilities of the sampled tokens of `row` as training computes them, float32 [N]."""
    temperature = 1.0 if config.rollout.greedy else config.rollout.temperature
    micro = collate(policy, weigh_rows(Batch([row], [0.0]), config.loss)).to(policy.device)
    with without_training(policy.model), torch.no_grad():
        return score_tokens(policy, micro, temperature).logprobs.cpu()


@contextmanager
def nudged(policy: PolicyModel) -> Iterator[None]:
    """The policy a little changed: an adapter's B, which begins at 0, or the smallest tensor that is trained."""
    trained = dict(policy.trainable_parameters())
    chosen = [parameter for name, parameter in trained.items() if "lora_B" in name]
    chosen = chosen or [min(trained.values(), key=lambda parameter: parameter.numel())]
    former = [parameter.detach().clone() for parameter in chosen]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for parameter in chosen:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(_NUDGE * noise.to(parameter))
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(chosen, former, strict=True):
                parameter.copy_(value)


def _ask(context: Context, request: GenerateRequest) -> GenerateResponse:
    try:
        return context.wait_for(context.engine.generate(request))
    finally:
        context.engine.release(request.conversation_id)


def _gap(policy: PolicyModel, config: TrainConfig, request: GenerateRequest, answer: GenerateResponse) -> float:
    return float((logprobs(policy, config, request, answer) - torch.tensor(answer.logprobs)).abs().mean())


def _tolerance(context: Context) -> float:
    return context.config.inference.canary_tolerance or tolerance_for(context.policy)


def _as_row(request: GenerateRequest, answer: GenerateResponse) -> Trajectory:
    before, sampled = len(request.input_ids), len(answer.output_ids)
    return Trajectory(
        input_ids=np.array([*request.input_ids, *answer.output_ids], np.int64),
        loss_mask=np.array([0] * before + [1] * sampled, np.int32),
        logprobs=np.array([0.0] * before + answer.logprobs, np.float32),
        versions=np.array([-1] * before + answer.versions, np.int32),
        images=request.images,
        reward=0.0,
        outcome=Outcome.FAILURE,
        task_id="doctor",
        group_id="doctor",
        episode_id="doctor",
        seed=0,
    )
