"""In-process inference with continuous batching, on the very model object that the trainer updates."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cua_agent.inference.base import GenerateRequest, GenerateResponse, InferenceFailure
from cua_agent.inference.forward import CachedForward, serving
from cua_agent.inference.kv_cache import SlotCache
from cua_agent.inference.prefill_batches import prefill_batches
from cua_agent.inference.sampling import sample
from cua_agent.inference.slots import Conversation, SlotTable, Turn
from cua_agent.models.pixels import check_screenshot
from cua_agent.models.policy import PolicyModel

PREFILL_TOKENS = 8192
"""Most tokens that are prefilled between two decoding steps, and most padded tokens of a pass of several rows, whose
attention mask that keeps small; a longer conversation goes alone."""


class LocalEngine:
    """Serves every waiting episode together; implements `InferenceEngine`.

    An asyncio task on the caller's event loop alternates prefills and decoding steps, and yields in between so that
    episodes that became ready can submit. Each conversation keeps its keys and values between turns, so that a turn
    costs its new tokens only; at most `max_batch` conversations are held, the least recently used idle one makes room.
    A conversation longer than `max_length` tokens (default: what the model allows) stops with reason "length".
    The engine may be used from one `asyncio.run` after another, but not from two threads.
    """

    def __init__(
        self, policy: PolicyModel, max_batch: int = 64, max_length: int | None = None, version: int = 0
    ) -> None:
        if max_batch < 1:
            raise ValueError(f"inference.max_batch={max_batch} must be at least 1")
        text_config = policy.base_model.config.get_text_config()
        self._policy = policy
        self._max_length = min(max_length or text_config.max_position_embeddings, text_config.max_position_embeddings)
        self._vocab_size: int = text_config.vocab_size
        self._version = version
        self._banned = torch.tensor(policy.special.banned, dtype=torch.long, device=policy.device)
        self._cache = SlotCache()
        self._forward = CachedForward(policy, self._cache)
        self._table = SlotTable(self._cache, max_batch)
        self._conversations: dict[str, Conversation] = {}
        self._waiting: list[Conversation] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._paused = False

    @property
    def version(self) -> int:
        return self._version

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        """Sample one turn. Raises `ValueError` on a malformed request, `InferenceFailure` when serving it failed."""
        self._bind()
        turn = self._turn(request)
        if turn.limit <= 0:
            return GenerateResponse([], [], [], "length")
        conversation = self._conversations.get(request.conversation_id)
        if conversation is not None and conversation.turn is not None:
            if conversation.turn.awaited_on(self._loop):
                raise ValueError(f"conversation {request.conversation_id!r} already has a turn in progress")
            self.release(request.conversation_id)
        conversation = self._conversations.setdefault(request.conversation_id, Conversation(request.conversation_id))
        conversation.begin(turn)
        self._waiting.append(conversation)
        self._wake.set()
        return await turn.future

    def release(self, conversation_id: str) -> None:
        conversation = self._conversations.pop(conversation_id, None)
        if conversation is None:
            return
        if conversation.turn is not None:
            conversation.turn.fail(None)
            conversation.turn = None
        if conversation in self._waiting:
            self._waiting.remove(conversation)
        self._table.remove(conversation)

    def update_weights(self, version: int) -> None:
        """Turns in progress go on with the new weights, from a fresh prefill; each token carries its own version."""
        self._version = version
        self._waiting = [*self._table.interrupt(), *self._waiting]
        self._forward.weights_changed()

    def pause(self) -> None:
        """Sample no further token until `resume`; requests wait."""
        self._paused = True

    def resume(self) -> None:
        """Go on after `pause`."""
        self._paused = False
        self._wake.set()

    async def close(self) -> None:
        """Stop serving; requests in progress fail."""
        task, self._task = self._task, None
        if task is not None and self._loop is asyncio.get_running_loop():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._fail(InferenceFailure("the engine was closed"))

    def _bind(self) -> None:
        """Attach to the running loop; turns of a former loop are gone with it."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._wake, self._task = loop, asyncio.Event(), None
            self._drop_abandoned()
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._serve())

    def _turn(self, request: GenerateRequest) -> Turn:
        """Check a request, so that none can fail the batch it ends up in."""
        if not request.input_ids or not 0 <= min(request.input_ids) <= max(request.input_ids) < self._vocab_size:
            raise ValueError(f"input_ids must be at least one id, each in 0..{self._vocab_size - 1}")
        if not request.greedy and not request.temperature > 0:
            raise ValueError(f"temperature={request.temperature} must be positive; allowed besides: greedy=True")
        for image in request.images:
            check_screenshot(image)
        prompt = self._policy.positions(request.input_ids, request.images)
        length = len(request.input_ids)
        limit = max(0, min(request.max_new_tokens, self._max_length - length))
        following = np.broadcast_to(prompt.max() + 1 + np.arange(limit), (3, limit))
        return Turn(
            request=request,
            future=asyncio.get_running_loop().create_future(),
            positions=np.concatenate([prompt, following], axis=1),
            uniforms=np.random.default_rng((abs(request.seed), length)).random(limit),
            limit=limit,
        )

    async def _serve(self) -> None:
        while True:
            try:
                await self._work_arrived()
                self._drop_abandoned()
                with serving(self._policy.model):
                    self._step()
            except Exception as error:
                self._fail(error)
            await asyncio.sleep(0)

    async def _work_arrived(self) -> None:
        """Wait until there is something to do; when nobody decodes, let everybody who is ready join the prefill."""
        while self._paused or (not self._waiting and not self._table.active):
            self._wake.clear()
            await self._wake.wait()
        seen = 0
        while not self._table.active and len(self._waiting) > seen:
            seen = len(self._waiting)
            await asyncio.sleep(0)

    def _step(self) -> None:
        """Prefills when nobody decodes or as many wait as decode, otherwise a decoding step."""
        active = self._table.active
        joining = self._admit() if len(self._waiting) >= len(active) else []
        if joining:
            chosen = set(joining)
            self._waiting = [conversation for conversation in self._waiting if conversation not in chosen]
            for batch in prefill_batches([row.uncached for row in joining], PREFILL_TOKENS):
                first_slot, rows = self._table.activate([joining[i] for i in batch])
                self._advance(rows, self._forward.prefill(rows, first_slot))
        elif active:
            self._advance(active, self._forward.decode(active))

    def _admit(self) -> list[Conversation]:
        """Waiting conversations, first come first served, as far as slots and the prefill budget reach."""
        admitted: list[Conversation] = []
        left = PREFILL_TOKENS
        for conversation in self._waiting:
            left -= conversation.uncached
            if admitted and left < 0:
                break
            if self._table.claim(conversation):
                admitted.append(conversation)
        return admitted

    def _advance(self, rows: Sequence[Conversation], logits: Tensor) -> None:
        """Sample a token for each row, in the order of `logits`, and finish the turns that end with it."""
        turns = [row.turn for row in rows if row.turn is not None]
        tokens, logprobs = self._sample(turns, logits)
        ended = []
        for row, turn, token, logprob in zip(rows, turns, tokens, logprobs, strict=True):
            row.ids.append(token)
            turn.output_ids.append(token)
            turn.logprobs.append(logprob)
            turn.versions.append(self._version)
            stopped = token in self._policy.special.stop_ids
            if stopped or len(turn.output_ids) == turn.limit:
                turn.finish("stop" if stopped else "length")
                row.turn = None
                ended.append(row)
        self._table.deactivate(ended)

    def _sample(self, turns: Sequence[Turn], logits: Tensor) -> tuple[list[int], list[float]]:
        device = logits.device
        requests = [turn.request for turn in turns]
        tokens, logprobs = sample(
            logits,
            torch.tensor([1.0 if request.greedy else request.temperature for request in requests], device=device),
            torch.tensor([request.greedy for request in requests], device=device),
            torch.tensor([turn.uniforms[len(turn.output_ids)] for turn in turns], dtype=torch.float64, device=device),
            self._banned.to(device),
        )
        if not bool(logprobs.isfinite().all()):
            raise InferenceFailure("the policy's log-probabilities are not finite")
        return tokens.tolist(), logprobs.tolist()

    def _drop_abandoned(self) -> None:
        """Forget conversations whose turn nobody waits for any more: cancelled, or left over from a former loop."""
        for conversation in [*self._table.active, *self._waiting]:
            if conversation.turn is not None and not conversation.turn.awaited_on(self._loop):
                self.release(conversation.id)

    def _fail(self, error: Exception) -> None:
        """Every turn in progress ends with an `InferenceFailure`, and nothing cached is trusted any more."""
        failure = error if isinstance(error, InferenceFailure) else InferenceFailure(f"{type(error).__name__}: {error}")
        for conversation in self._conversations.values():
            if conversation.turn is not None:
                conversation.turn.fail(failure)
        self._conversations.clear()
        self._waiting.clear()
        self._table.clear()
        self._cache.clear()
