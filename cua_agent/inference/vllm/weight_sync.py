"""One server: its configuration checked, weights published to it and taken back, the canary asked."""

from __future__ import annotations

import logging
import threading
from typing import Any

import numpy as np

from cua_agent.inference.vllm import wire
from cua_agent.inference.vllm.adapter_registry import PREFIX, Publication
from cua_agent.inference.vllm.canary import Reading, judge
from cua_agent.inference.vllm.client import ControlClient
from cua_agent.inference.vllm.errors import Refused, ServerMismatch, Unavailable
from cua_agent.inference.vllm.plan import SERVE_COMMAND, ServingPlan, check_server
from cua_agent.inference.vllm.worker import EXTENSION

logger = logging.getLogger(__name__)

_BAD_REQUEST, _FORBIDDEN, _NOT_FOUND = 400, 403, 404


class Replica:
    """Blocking and thread-safe: one thread publishes at a time, the others wait and find it done.

    `epoch` counts how often the server was met anew. Whoever finds that the server forgot its weights says so with the
    epoch of the request that found out, so that the news of a restart counts once.
    """

    def __init__(self, client: ControlClient, plan: ServingPlan) -> None:
        self._client = client
        self._plan = plan
        self._lock = threading.RLock()
        self._readings: list[Reading] = []
        self._base_name = ""
        self._reload_method = "reload_weights"
        self._met = False
        self._serial = -1  # of the newest publication that this server has
        self.epoch = 0

    @property
    def url(self) -> str:
        """The server's base URL."""
        return self._client.url

    def serves(self, publication: Publication) -> bool:
        """Whether the server has these weights or newer ones."""
        return publication.serial <= self._serial

    def model_name(self, publication: Publication) -> str:
        """What a request for `publication` names as its model."""
        return self._base_name if self._plan.lora_rank is None else publication.name

    def publish(self, publication: Publication) -> bool:
        """Have the server serve `publication`, and check that it really does; False when it does already.

        One try: raises `Unavailable` when the server gives no answer. Raises `ServerMismatch` when it cannot serve
        this run, `CanaryError` when it serves something else.
        """
        with self._lock:
            if self.serves(publication):
                return False
            try:
                self._meet()
                if self._plan.lora_rank is None:
                    self._load_full_weights(publication)
                else:
                    self._load_adapter(publication)
                self._ask_canary(publication)
            except Unavailable:
                self._met = False
                raise
            except Refused as error:
                raise ServerMismatch(f"{error}; {_cure(error, publication)}") from error
            self._serial = publication.serial
            return True

    def lost(self, epoch: int) -> None:
        """The server of `epoch` knows nothing of what was published: it was restarted."""
        with self._lock:
            if epoch == self.epoch:
                self._met, self._serial = False, -1

    def withdraw(self, publication: Publication) -> None:
        """Unload what no request needs; a server that does not answer has nothing to unload when it comes back."""
        if self._plan.lora_rank is None:
            return
        with self._lock:
            try:
                self._client.call(wire.unload_adapter(publication.name))
            except (Unavailable, Refused) as error:
                logger.debug("%s was not unloaded: %s", publication.name, error)

    def close(self) -> None:
        self._client.close()

    def _meet(self) -> None:
        """Check a server that is new to us, or was restarted, and clear what former runs left on it."""
        if self._met:
            return
        try:
            info = self._client.call(wire.Call("GET", wire.SERVER_INFO, query={"config_format": "json"}))
        except Refused as error:
            raise ServerMismatch(
                f"{self.url} does not tell its configuration (VLLM_SERVER_DEV_MODE=1 is missing, or it is no vLLM "
                f"server); start it with {SERVE_COMMAND}"
            ) from error
        check_server(self.url, info, self._plan)
        extension = info["vllm_config"]["parallel_config"].get("worker_extension_cls")
        self._reload_method = "reload_policy" if extension == EXTENSION else "reload_weights"
        models: list[dict[str, Any]] = self._client.call(wire.Call("GET", wire.MODELS))["data"]
        self._base_name = next(model["id"] for model in models if not model.get("parent"))
        for model in models:
            if model.get("parent") and model["id"].startswith(PREFIX):
                self._client.call(wire.unload_adapter(model["id"]))
        self.epoch += 1
        self._met, self._serial = True, -1

    def _load_adapter(self, publication: Publication) -> None:
        call = wire.load_adapter(publication.name, str(publication.directory))
        try:
            self._client.call(call)
        except Refused as error:
            if error.status != _BAD_REQUEST or "already been loaded" not in str(error):
                raise
            # An earlier try whose answer was lost; whose directory it names is not known for sure.
            self._client.call(wire.unload_adapter(publication.name))
            self._client.call(call)

    def _load_full_weights(self, publication: Publication) -> None:
        self._client.call(wire.pause())
        try:
            self._client.call(wire.reload_weights(self._reload_method, str(publication.directory)))
            for reset in wire.reset_caches():
                answer = self._client.call(reset)
                if isinstance(answer, dict) and not answer.get("success", True):
                    raise Unavailable(f"{self.url} could not drop what it computed with former weights")
            self._client.call(wire.tag_weights(publication.name))
        finally:
            self._client.call(wire.resume())

    def _ask_canary(self, publication: Publication) -> None:
        canary, name = self._plan.canary, self.model_name(publication)
        observed: list[float] = []
        for probe in canary.probes:
            answer = self._client.call(wire.probe(name, probe.wire, canary.choices))
            observed += wire.read_probe(answer, probe.ids, canary.choices)
        reading = Reading(publication.name, np.array(publication.expected), np.array(observed))
        judge(self._readings, reading, self._plan.tolerance)
        self._readings.append(reading)


def _cure(error: Refused, publication: Publication) -> str:
    if error.status == _FORBIDDEN:
        return "start it with --enable-scale-out"
    if error.status == _NOT_FOUND and "No adapter found" not in str(error):
        return "vLLM 0.32 or newer is needed"
    return f"the server must be able to read {publication.directory} (set inference.weights_dir to a shared directory)"
