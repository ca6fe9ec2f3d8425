"""The canary: does a server really sample from the weights that the trainer published?

After each publication the server is asked, at a few places of a fixed conversation with a screenshot, how likely it is
to go on with each of some twenty tokens. Its log-probabilities must be those of the trainer's own model, and from one
publication to the next they must move as the trainer's move: a server that goes on with old weights, or applies an
adapter with another scale, is found before anything is trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from cua_agent.actions import Tap, Target
from cua_agent.inference.forward import without_training
from cua_agent.inference.vllm.errors import CanaryError
from cua_agent.inference.vllm.images import sent_image
from cua_agent.inference.vllm.wire import Prompt, collapse
from cua_agent.models.policy import PolicyModel
from cua_agent.parsing import render_tool_call
from cua_agent.prompts import END_OF_TURN, first_prompt, system_prompt

TOLERANCES = {torch.float32: 5e-4, torch.bfloat16: 0.15}
"""Largest mean difference of log-probabilities between server and trainer, by the policy's dtype."""
TF32_TOLERANCE = 1e-2
"""In float32 on a GPU: vLLM multiplies in TF32 there, which costs 2.4e-3 (seen on an H200)."""
MOVE_TOLERANCE = 0.2
"""Tolerance of a move as a part of the above: what differs between the two programs cancels out of a difference."""
ROUNDED_MOVE_TOLERANCE = 0.5
"""The same in bfloat16, and when all weights changed: how products round does not cancel (0.06 to 0.09 off, seen on an
H200)."""
MOVE_SHARE = 0.5
"""How far a move may be off, besides, as a part of its size."""
MAX_CHOICES = 20
"""vLLM reports no more log-probabilities per token unless it is told to."""
_PROBES = 4
_SCREEN = (64, 96)


@dataclass(frozen=True)
class Probe:
    """One place of the canary: what comes next after `ids`?"""

    ids: list[int]
    wire: Prompt = field(repr=False)


@dataclass(frozen=True)
class Canary:
    """The probes are beginnings of one conversation, shortest first; each asks for the log-probabilities of `choices`,
    no other token being allowed."""

    probes: list[Probe]
    choices: list[int]
    images: list[npt.NDArray[np.uint8]] = field(repr=False)


@dataclass(frozen=True)
class Reading:
    """Log-probabilities of the choices at all probes, at one publication: the trainer's and the server's."""

    name: str
    expected: npt.NDArray[np.float64]
    observed: npt.NDArray[np.float64]


def make_canary(policy: PolicyModel) -> Canary:
    """The first turn of an episode, in the agent's own words, with a picture; the choices are the words of its answer.

    The probes are spread over the answer, the first of them before it.
    """
    rows, columns = np.indices(_SCREEN)
    image = np.stack([rows * 2, columns * 2, (rows > columns) * 255], axis=-1).astype(np.uint8)
    count = policy.image_tokens(*_SCREEN)
    prompt = policy.encode(first_prompt(system_prompt("brief", "target"), "Open the settings.", count))
    answer = policy.encode(render_tool_call(Tap(Target("Settings"))) + END_OF_TURN)
    images = [sent_image(policy.image_processor, image)]
    collapsed = collapse(prompt, policy.special.image_token_id, [count])
    begun = [answer[: len(answer) * i // _PROBES] for i in range(_PROBES)]
    return Canary(
        probes=[Probe(prompt + part, Prompt(collapsed + part, images)) for part in begun],
        choices=list(dict.fromkeys(answer))[:MAX_CHOICES],
        images=[image],
    )


def own_logprobs(policy: PolicyModel, canary: Canary) -> tuple[float, ...]:
    """The trainer's answer: one full forward pass over the longest probe, also of a model that is sharded (all
    processes that hold shards ask together)."""
    longest = canary.probes[-1].ids
    pixel_values, image_grid_thw = policy.pixels(canary.images)
    positions = torch.from_numpy(policy.positions(longest, canary.images))[:, None].to(policy.device)
    places = torch.tensor([len(probe.ids) - 1 for probe in canary.probes], device=policy.device)
    with without_training(policy.model), torch.no_grad():
        answer = policy.model(
            input_ids=torch.tensor([longest], device=policy.device),
            position_ids=positions,
            pixel_values=pixel_values,
            image_grid_thw=image_grid_thw,
            use_cache=False,
            logits_to_keep=places,
        )
        scores = answer.logits[0].float()[:, canary.choices].log_softmax(-1)
    return tuple(scores.flatten().tolist())


def tolerance_for(policy: PolicyModel) -> float:
    """The mean log-prob gap that the policy's dtype explains, on its device, for lack of the server's."""
    if policy.dtype == torch.float32 and policy.device.type == "cuda":
        return TF32_TOLERANCE
    return TOLERANCES.get(policy.dtype, TOLERANCES[torch.bfloat16])


def judge(former: Sequence[Reading], now: Reading, tolerance: float, *, rounded: bool = False) -> None:
    """Compare a reading with itself and with the former ones of the same server, to which products `rounded` anew.
    Raises `CanaryError`."""
    floor = (ROUNDED_MOVE_TOLERANCE if rounded else MOVE_TOLERANCE) * tolerance
    gap = _mean_gap(now.observed, now.expected)
    if not gap <= tolerance:  # NaN is a gap, too
        raise CanaryError(
            f"{now.name}: the server's log-probabilities are {gap:.2g} from the trainer's on average (tolerance "
            f"{tolerance:g}): it has another base model, or does not serve what was published"
        )
    for reading in former:
        own_move = now.expected - reading.expected
        server_move = now.observed - reading.observed
        size, off = float(np.abs(own_move).mean()), _mean_gap(server_move, own_move)
        if off > floor + MOVE_SHARE * size:
            raise CanaryError(
                f"{now.name}: since {reading.name} the trainer's log-probabilities moved by {size:.2g} on average, the "
                f"server's by {np.abs(server_move).mean():.2g}; it does not follow the published weights"
            )


def _mean_gap(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    return float(np.abs(a - b).mean())
