"""One server: its configuration checked, weights published to it and taken back, the canary asked."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cua_agent.inference.vllm import wire
from cua_agent.inference.vllm.adapter_registry import Publication
from cua_agent.inference.vllm.canary import Reading, judge
from cua_agent.inference.vllm.client import ControlClient
from cua_agent.inference.vllm.errors import Refused, ServerMismatch, Unavailable
from cua_agent.inference.vllm.images import SentImages
from cua_agent.inference.vllm.ownership import RELEASE_COMMAND, RELEASED, Holdings, Loaded, is_dead, read_holdings
from cua_agent.inference.vllm.plan import SERVE_COMMAND, ServingPlan, check_server
from cua_agent.inference.vllm.weight_transfer import reads_memory, transfer
from cua_agent.inference.vllm.worker import EXTENSION

logger = logging.getLogger(__name__)

_BAD_REQUEST, _FORBIDDEN, _NOT_FOUND = 400, 403, 404
_SHOWN_NAMES = 5


class Replica:
    """Blocking and thread-safe: one thread publishes at a time, the others wait and find it done.

    `epoch` counts how often the server was met anew. Whoever finds that the server forgot its weights says so with the
    epoch of the request that found out, so that the news of a restart counts once. `images` are those that it keeps;
    `reads_memory` tells, once it was met, whether it takes weights out of this process's GPU memory.
    """

    def __init__(self, client: ControlClient, plan: ServingPlan) -> None:
        self._client = client
        self._plan = plan
        self._lock = threading.RLock()
        self._readings: list[Reading] = []
        self._base_name = ""
        self._slots = 0
        self._own_tag = ""
        self._unneeded: list[str] = []  # adapters that are still to be unloaded
        self._reload_method = "reload_weights"
        self.reads_memory = False
        self._met = False
        self._serial = -1  # of the newest publication that this server has
        self.epoch = 0
        self.images = SentImages()
        self.base_tag = ""  # what the server's full weights were last known to be tagged with

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
                self._meet(publication)
                self._unload()
                if self._plan.lora_rank is None:
                    self._load_full_weights(publication)
                else:
                    self._load_adapter(publication)
                self._ask_canary(publication)
            except Unavailable:
                self._met = False
                raise
            except Refused as error:
                raise ServerMismatch(f"{error}; {self._cure(error, publication)}") from error
            self._serial = publication.serial
            return True

    def lost(self, epoch: int) -> None:
        """The server of `epoch` knows nothing of what was published: it was restarted."""
        with self._lock:
            if epoch == self.epoch:
                self._met, self._serial = False, -1

    def withdraw(self, publication: Publication, *, later: bool = False) -> None:
        """Unload what no request needs; `later`, and from a server that does not answer: when it is next published
        to."""
        if self._plan.lora_rank is None:
            return
        with self._lock:
            self._unneeded.append(publication.name)
            if not later:
                self._unload()

    def _unload(self) -> None:
        while self._unneeded:
            try:
                self._client.call(wire.unload_adapter(self._unneeded[0]))
            except Unavailable as error:
                logger.debug("%s is not unloaded yet: %s", self._unneeded[0], error)
                return
            except Refused as error:  # it is gone
                logger.debug("%s was not unloaded: %s", self._unneeded[0], error)
            del self._unneeded[0]

    def close(self) -> None:
        """Unload what is left, let go of full weights that are ours, so that another run may load its own, and of the
        connection; safe to call twice."""
        with self._lock:
            self._unload()  # a server that was left out may listen by now
            self._unneeded.clear()
            own, self._own_tag = self._own_tag, ""
            try:
                if own and read_holdings(self._client).tag == own:
                    self._client.call(wire.tag_weights(RELEASED))
            except (Unavailable, Refused) as error:
                logger.debug("%s was not told that its weights are free: %s", self.url, error)
            self._client.close()

    def _meet(self, publication: Publication) -> None:
        """Check a server that is new to us, was restarted, or got full weights that are not ours."""
        holdings = read_holdings(self._client)
        if self._met and holdings.tag == self.base_tag:
            return
        try:
            info = self._client.call(wire.server_info())
        except Refused as error:
            raise ServerMismatch(
                f"{self.url} does not tell its configuration (VLLM_SERVER_DEV_MODE=1 is missing, or it is no vLLM "
                f"server); start it with {SERVE_COMMAND}"
            ) from error
        try:
            check_server(self.url, info, self._plan)
            extension = info["vllm_config"]["parallel_config"].get("worker_extension_cls")
            self._slots = (info["vllm_config"]["lora_config"] or {}).get("max_loras", 0)
        except (AttributeError, KeyError, TypeError) as error:
            raise Unavailable(f"{self.url} tells its configuration in part: {type(error).__name__} {error}") from error
        self._reload_method = "reload_policy" if extension == EXTENSION else "reload_weights"
        self.reads_memory = reads_memory(self.url, info)
        self._share(holdings, publication.directory.parent)
        self._base_name, self.base_tag = holdings.base_name, holdings.tag
        self.epoch += 1
        self.images.forget()
        self._met, self._serial = True, -1

    def _share(self, holdings: Holdings, own: Path) -> None:
        """Unload what dead runs left behind, and leave alone what others have loaded. Raises `ServerMismatch` when
        they and this run, which exports to `own`, would change each other's weights."""
        foreign = [adapter for adapter in holdings.adapters if adapter.export.parent != own]
        others = [adapter for adapter in foreign if not is_dead(adapter.export)]
        for adapter in foreign:
            if adapter not in others:
                self._client.call(wire.unload_adapter(adapter.name))
        full = holdings.full_weights
        if full is not None and full.export.parent != own and not is_dead(full.export):
            raise ServerMismatch(
                f"{self.url} holds full weights of another run ({full.name}), which no other run can share; start a "
                f"server for each, or if that run has ended: {RELEASE_COMMAND} {self.url} {full.run}"
            )
        if not others:
            return
        if self._plan.lora_rank is None:
            raise ServerMismatch(
                f"{self.url} serves adapters of other runs ({_names(others)}), whose base would change with this run's "
                f"full weights; start a server for each, or if those have ended: {_release(self.url, others)}"
            )
        if self._slots < self._plan.slots + len(others):
            logger.warning(
                "%s has --max-loras %d for adapters of other runs (%s) and %d of this run: they wait for each other; "
                "start it with more, or if those have ended: %s",
                *(self.url, self._slots, _names(others), self._plan.slots, _release(self.url, others)),
            )

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
            self._replace_weights(publication)
            self.images.forget()
            for reset in wire.reset_caches():
                answer = self._client.call(reset)
                if isinstance(answer, dict) and not answer.get("success", True):
                    raise Unavailable(f"{self.url} could not drop what it computed with former weights")
            self._client.call(wire.tag_weights(publication.tag))
            self.base_tag = self._own_tag = publication.tag
        finally:
            self._client.call(wire.resume())

    def _replace_weights(self, publication: Publication) -> None:
        whole = publication.whole
        assert whole is not None
        if self.reads_memory and whole.in_memory:
            try:
                transfer(self._client, whole.tensors())
                return
            except Refused as error:
                self.reads_memory = False
                logger.warning(
                    "%s cannot read the weights in this process's memory and gets files: %s", self.url, error
                )
        whole.write()
        self._client.call(wire.reload_weights(self._reload_method, str(publication.directory)))

    def _ask_canary(self, publication: Publication) -> None:
        canary, name = self._plan.canary, self.model_name(publication)
        observed: list[float] = []
        for probe in canary.probes:
            answer = self._client.call(wire.probe(name, probe.wire, canary.choices))
            observed += wire.read_probe(answer, probe.ids, canary.choices)
        reading = Reading(publication.name, np.array(publication.expected), np.array(observed))
        rounded = self._plan.lora_rank is None or self._plan.dtype == "bfloat16"
        judge(self._readings, reading, self._plan.tolerance, rounded=rounded)
        self._readings.append(reading)

    def _cure(self, error: Refused, publication: Publication) -> str:
        """What helps against a refused publication, in words."""
        directory = str(publication.directory)
        if error.status == _FORBIDDEN:
            return "start it with --enable-scale-out"
        if error.status == _NOT_FOUND and "No adapter found" not in str(error):
            return "vLLM 0.32 or newer is needed"
        if self._plan.lora_rank is None or directory in str(error) or "ermission denied" in str(error):
            return f"the server must be able to read {directory} (set inference.weights_dir to a shared directory)"
        return f"loaded there: {self._loaded_names()}"

    def _loaded_names(self) -> str:
        try:
            return _names(read_holdings(self._client).adapters)
        except (Unavailable, Refused):
            return "unknown"


def _names(loaded: Iterable[Loaded]) -> str:
    """The first few names, in one line."""
    names = [each.name for each in loaded]
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return (", ".join(names[:_SHOWN_NAMES]) or "nothing") + more


def _release(url: str, others: Iterable[Loaded]) -> str:
    """The command that unloads what `others` are of, or the first of them where they are of several runs."""
    return f"{RELEASE_COMMAND} {url} {next(iter(others)).run}"
