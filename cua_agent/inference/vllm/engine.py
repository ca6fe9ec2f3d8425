"""`VllmEngine`: rollouts on one or several vLLM servers, with weights published to them while they serve."""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_delay,
    stop_when_event_set,
)
from tenacity.wait import wait_exponential_jitter

from cua_agent.inference.base import GenerateRequest, GenerateResponse
from cua_agent.inference.vllm import wire
from cua_agent.inference.vllm.adapter_registry import AdapterRegistry, Publication
from cua_agent.inference.vllm.canary import own_logprobs
from cua_agent.inference.vllm.client import CONTROL_TIMEOUT_S, ControlClient, SamplingClient
from cua_agent.inference.vllm.errors import Forgotten, ImagesForgotten, Refused, ServerFailure, TokenDrift, Unavailable
from cua_agent.inference.vllm.images import NamedImages
from cua_agent.inference.vllm.ownership import WeightsDirectory
from cua_agent.inference.vllm.plan import ServingPlan
from cua_agent.inference.vllm.router import Router
from cua_agent.inference.vllm.weight_sync import Replica
from cua_agent.inference.vllm.whole_weights import WholeWeights
from cua_agent.models.pixels import check_screenshot
from cua_agent.models.policy import PolicyModel

logger = logging.getLogger(__name__)

_BAD_REQUEST, _NOT_FOUND = 400, 404
_backoff = wait_exponential_jitter(initial=0.1, max=3.0, jitter=0.5)


@dataclass(frozen=True)
class Patience:
    """`in_flight` requests at a time and server; one try may take `request_s`; a request or a publication is given up
    after `server_s` of failed tries."""

    in_flight: int = 64
    request_s: float = 120.0
    server_s: float = 600.0


@dataclass
class Counters:
    """What happened so far: turns sampled, tries repeated, token drifts, weights put back on a restarted server."""

    turns: int = 0
    retries: int = 0
    drifts: int = 0
    restores: int = 0


class VllmEngine:
    """Implements `InferenceEngine` over HTTP. Call `update_weights` once before the first `generate`.

    `update_weights` and `generate` may run in different threads; `generate` belongs to one event loop at a time.
    `save_weights(directory, policy)` exports the adapter; `weights_dir` must be readable by the servers.
    Engines may share servers, also with the same `run`: whatever is published is named after this very engine.
    """

    def __init__(
        self,
        policy: PolicyModel,
        urls: Sequence[str],
        plan: ServingPlan,
        save_weights: Callable[[Path, PolicyModel], None],
        *,
        patience: Patience | None = None,
        weights_dir: Path | None = None,
        run: str = "run",
    ) -> None:
        self._policy = policy
        self._plan = plan
        self._save_weights = save_weights
        self._patience = patience or Patience()
        quick_s = min(CONTROL_TIMEOUT_S, self._patience.request_s)
        self._replicas = [Replica(ControlClient(url, quick_s), plan) for url in urls]
        self._router = Router([each.url for each in self._replicas], self._patience.server_s)
        self._exports = WeightsDirectory(weights_dir, run, [each.url for each in self._replicas])
        self._publications = AdapterRegistry(self._exports.path.name)
        self._images = NamedImages(policy.image_processor)
        self._vocabulary: int = policy.base_model.config.get_text_config().vocab_size
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots = asyncio.Semaphore(1)
        self._sampling: SamplingClient | None = None
        self._counters = Counters()

    @property
    def weights_dir(self) -> Path:
        """Where this engine leaves weights for the servers; its name begins the name of every adapter."""
        return self._exports.path

    @property
    def version(self) -> int:
        current = self._publications.current
        return 0 if current is None else current.version

    @property
    def counters(self) -> dict[str, int]:
        """What happened to requests so far, by kind."""
        return asdict(self._counters)

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        """Sample one turn. Raises `ValueError` on a malformed request, `TokenDrift` (an `InferenceFailure`) when the
        server's tokens are not ours, `InferenceFailure` when no server answered in time, and `CanaryError` when one
        came back with other weights."""
        self._bind()
        self._check(request)
        limit = min(request.max_new_tokens, self._plan.max_length - len(request.input_ids))
        if limit <= 0:
            return GenerateResponse([], [], [], "length")
        special, grid = self._policy.special, self._policy.image_tokens
        counts = [grid(image.shape[0], image.shape[1]) for image in request.images]
        ids = wire.collapse(request.input_ids, special.image_token_id, counts)
        sampling = wire.sampling_params(request, limit, special.stop_ids, special.banned)
        async with self._slots:
            response = await self._persist(request, ids, sampling)
        self._counters.turns += 1
        await self._withdraw_unneeded()
        return response

    def release(self, conversation_id: str) -> None:
        self._images.release(conversation_id)
        self._router.release(conversation_id)

    def update_weights(self, version: int) -> None:
        """Export the policy, have every server load it, and check that it serves it; then new requests use it.

        Servers that do not answer are waited for. Raises `CanaryError`, `ServerMismatch`, or `Unavailable` when no
        server answered in time.
        """
        directory = self.weights_dir / self._publications.next_name(version)
        directory.mkdir(exist_ok=True)
        whole = None
        if self._plan.lora_rank is None:
            keep = any(replica.reads_memory for replica in self._replicas)
            whole = WholeWeights(self._policy, directory, keep=keep)
        else:
            self._save_weights(directory, self._policy)
        expected = own_logprobs(self._policy, self._plan.canary)
        publication = self._publications.add(version, directory, expected, whole)
        former = self._exports.of_dead_runs([each.url for each in self._replicas])
        try:
            self._publish(publication)
        except BaseException:
            self._publications.forget(publication)
            shutil.rmtree(directory, ignore_errors=True)
            raise
        self._forget_dead_runs(former, publication)
        self._publications.announce(publication)
        self._withdraw(self._publications.take_unneeded())

    async def close(self) -> None:
        """Unload what was loaded and delete what was exported; the servers go on."""
        sampling, self._sampling = self._sampling, None
        if sampling is not None and self._loop is asyncio.get_running_loop():
            await sampling.close()
        await asyncio.to_thread(self.discard)

    def discard(self) -> None:
        """`close` for an engine that no event loop has used yet."""
        self._withdraw(self._publications.take_all())
        for replica in self._replicas:
            replica.close()
        self._exports.close()

    def _bind(self) -> None:
        """Attach to the running loop; connections of a former loop are gone with it."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop or self._sampling is None:
            places = self._patience.in_flight * len(self._replicas)
            self._loop, self._slots = loop, asyncio.Semaphore(places)
            self._sampling = SamplingClient([each.url for each in self._replicas], places, self._patience.request_s)

    def _check(self, request: GenerateRequest) -> None:
        if not request.input_ids or not 0 <= min(request.input_ids) <= max(request.input_ids) < self._vocabulary:
            raise ValueError(f"input_ids must be at least one id, each in 0..{self._vocabulary - 1}")
        if not request.greedy and not 0 < request.temperature <= wire.MAX_TEMPERATURE:
            raise ValueError(
                f"temperature={request.temperature} must be above 0 and at most {wire.MAX_TEMPERATURE:g}; "
                "allowed besides: greedy=True"
            )
        for image in request.images:
            check_screenshot(image)

    async def _persist(self, request: GenerateRequest, ids: list[int], sampling: dict[str, Any]) -> GenerateResponse:
        """Try until a server answers or patience ends; sampling acts on nothing, so a repeated try is safe."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type((Unavailable, Forgotten)),
            wait=_pause,
            stop=stop_after_delay(self._patience.server_s),
            before_sleep=self._count_retry,
            reraise=True,
        )
        try:
            return await retrying(self._try, request, ids, sampling)
        except TokenDrift as drift:
            self._counters.drifts += 1
            logger.warning("%s: %s", request.conversation_id, drift)
            raise

    async def _try(self, request: GenerateRequest, ids: list[int], sampling: dict[str, Any]) -> GenerateResponse:
        if self._sampling is None:
            raise ServerFailure("the engine was closed")
        server = self._router.pick(request.conversation_id)
        replica = self._replicas[server]
        with self._publications.in_use() as publication:
            try:
                if not replica.serves(publication):
                    restored = await asyncio.to_thread(replica.publish, publication)
                    self._counters.restores += restored
                epoch = replica.epoch
                model = replica.model_name(publication)
                try:
                    generation = await self._ask(replica, model, request, ids, sampling)
                except ImagesForgotten:
                    replica.images.forget()
                    generation = await self._ask(replica, model, request, ids, sampling)
                wire.check_prompt(request.input_ids, generation.prompt_ids)
                versions = self._versions(replica, publication, generation, epoch)
            except Unavailable as error:
                self._router.failed(server, str(error))
                raise
        self._router.answered(server)
        return GenerateResponse(generation.output_ids, generation.logprobs, versions, generation.stop_reason)

    async def _ask(
        self, replica: Replica, model: str, request: GenerateRequest, ids: list[int], sampling: dict[str, Any]
    ) -> wire.Generation:
        """Send the request, with the images that `replica` was not sent before. Raises `Forgotten` for weights that the
        server does not know, `ImagesForgotten` for images."""
        assert self._sampling is not None
        epoch = replica.epoch
        images = await self._images.of(request.conversation_id, request.images, replica.images)
        call = wire.generate(model, wire.Prompt(ids, images), sampling)
        try:
            generation = wire.read_generation(await self._sampling.call(replica.url, call))
        except Refused as error:
            if error.status == _BAD_REQUEST and wire.IMAGE_MISSING in str(error):
                raise ImagesForgotten(str(error)) from error
            if error.status != _NOT_FOUND:
                raise
            replica.lost(epoch)
            raise Forgotten(str(error)) from error
        if epoch == replica.epoch:
            replica.images.add(images)
        return generation

    def _versions(
        self, replica: Replica, publication: Publication, generation: wire.Generation, epoch: int
    ) -> list[int]:
        """The version that sampled each token: the adapter's, or what the server's weights were tagged with."""
        if self._plan.lora_rank is None:
            sampled = [(Path(tag).name, count) for tag, count in generation.weights]
            foreign = [name for name, _ in sampled if self._publications.version_of(name) is None]
        else:
            sampled = [(generation.model, len(generation.output_ids))]
            foreign = [generation.model] * (generation.model != publication.name)
            foreign += [tag for tag, _ in generation.weights if tag != replica.base_tag]
        if foreign:
            replica.lost(epoch)
            raise Forgotten(f"{replica.url} sampled from {foreign[0]!r}, which is not what was published to it")
        versions = ((self._publications.version_of(name), count) for name, count in sampled)
        return [version for version, count in versions if version is not None for _ in range(count)]

    def _publish(self, publication: Publication) -> None:
        """To all servers at once. One that stays silent is waited for while all do; else it is left out, and catches up
        before it is next asked for a turn."""
        enough = threading.Event()

        def publish(server: int) -> None:
            retrying = Retrying(
                retry=retry_if_exception_type(Unavailable),
                wait=_pause,
                stop=stop_after_delay(self._patience.server_s) | stop_when_event_set(enough),
                sleep=sleep_using_event(enough),
                after=lambda state: self._router.failed(server, str(state.outcome and state.outcome.exception())),
                reraise=True,
            )
            retrying(self._replicas[server].publish, publication)
            self._router.answered(server)
            enough.set()

        servers = self._router.present()
        with ThreadPoolExecutor(len(servers)) as pool:
            tasks = [pool.submit(publish, server) for server in servers]
            try:
                failures = [task.exception() for task in tasks]
            except BaseException:  # Ctrl-C reaches this thread only
                enough.set()
                raise
        silent = [failure for failure in failures if isinstance(failure, Unavailable)]
        for failure in failures:
            if failure is not None and (failure not in silent or len(silent) == len(failures)):
                raise failure

    def _forget_dead_runs(self, former: Sequence[Path], publication: Publication) -> None:
        """Delete what they exported, once every server has been met and rid of it."""
        if self._publications.current is None and all(each.serves(publication) for each in self._replicas):
            for directory in former:
                shutil.rmtree(directory, ignore_errors=True)

    async def _withdraw_unneeded(self) -> None:
        unneeded = self._publications.take_unneeded()
        if unneeded:
            await asyncio.to_thread(self._withdraw, unneeded)

    def _withdraw(self, publications: Sequence[Publication]) -> None:
        present = self._router.present()
        for publication in publications:
            for server, replica in enumerate(self._replicas):
                replica.withdraw(publication, later=server not in present)
            shutil.rmtree(publication.directory, ignore_errors=True)

    def _count_retry(self, _: RetryCallState) -> None:
        self._counters.retries += 1


def _pause(state: RetryCallState) -> float:
    """Exponential back-off with jitter, or as long as the server asked for."""
    error = state.outcome.exception() if state.outcome else None
    return max(_backoff(state), getattr(error, "retry_after_s", 0.0))
