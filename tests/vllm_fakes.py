"""A small HTTP server with vLLM's interface: real sockets and real weights, scripted faults, no vLLM."""

from __future__ import annotations

import asyncio
import base64
import copy
import io
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from cua_agent.inference.vllm.canary import Canary, make_canary, own_logprobs
from cua_agent.inference.vllm.plan import ServingPlan
from cua_agent.models.loaders import load_policy
from cua_agent.models.policy import PolicyModel

BASE = "policy"
_loading = threading.Lock()
"""transformers does not load models in two threads at once."""


def plan(lora_rank: int | None = 4) -> ServingPlan:
    return ServingPlan(
        lora_rank, slots=2, max_length=512, images=4, dtype="float32", canary=Canary([], [], []), tolerance=1e-3
    )


def server_info(
    logprobs_mode: str = "processed_logprobs",
    dtype: str = "torch.float32",
    max_model_len: int = 512,
    images: int = 4,
    lora: Any = {"max_lora_rank": 8, "max_loras": 2},  # noqa: B006 (never changed)
    transfer: str | None = None,
    env: Any = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": True},  # noqa: B006
) -> dict[str, Any]:
    """The part of a server's `/server_info` that is read."""
    model = {
        "logprobs_mode": logprobs_mode,
        "dtype": dtype,
        "max_model_len": max_model_len,
        "multimodal_config": {"limit_per_prompt": {"image": {"count": images}, "video": {"count": 0}}},
    }
    config = {"model_config": model, "lora_config": lora, "parallel_config": {"worker_extension_cls": ""}}
    config["weight_transfer_config"] = None if transfer is None else {"backend": transfer}
    return {"vllm_config": config, "vllm_env": env}


class FakeVllm:
    """Serves adapters of `base`, or full weights; answers a sampling request with its seed and the end of turn, the
    canary truthfully. `roots` are the directories that adapters came from; with
    `full` it takes no more of them, and says that.

    `faults` are statuses that the next sampling requests are answered with (0: the connection is cut, "drift": one
    token of the prompt is changed). `ignores_adapters` answers the canary as the base model would. `hold` keeps
    sampling requests waiting while it is cleared. `images` are those that it keeps, by name, with their token counts;
    `sent` counts how often each came with its pixels.
    """

    def __init__(self, base: PolicyModel, ignores_adapters: bool = False) -> None:
        self.adapters: dict[str, PolicyModel] = {}
        self.roots: dict[str, str] = {}
        self.tag = "default"
        self.full = ""
        self.log: list[str] = []
        self.faults: deque[int | str] = deque()
        self.hold = threading.Event()
        self.hold.set()
        self.in_flight = self.most_in_flight = 0
        self.images: dict[str, int] = {}
        self.sent: Counter[str] = Counter()
        self.memory: dict[str, Tensor] = {}
        self._received: dict[str, Tensor] = {}
        self.info = server_info()
        self._base = base
        self._canary = make_canary(base)
        self._ignores_adapters = ignores_adapters

    def restart(self) -> None:
        """Forget everything that was loaded."""
        self.adapters.clear()
        self.images.clear()
        self.tag = "default"
        self.log.append("restart")

    def app(self) -> FastAPI:
        app = FastAPI()
        app.get("/server_info")(lambda: self.info)
        app.get("/health")(lambda: Response())
        app.get("/v1/models")(self._models)
        app.post("/v1/load_lora_adapter")(self._load)
        app.post("/v1/unload_lora_adapter")(self._unload)
        app.post("/inference/v1/generate")(self._generate)
        app.get("/weight_info")(lambda: {"weight_version": self.tag})
        app.post("/update_weight_version")(self._tag)
        app.post("/collective_rpc")(self._reload)
        app.post("/update_weights")(self._transfer)
        app.post("/finish_weight_update")(self._finish_transfer)
        app.post("/reset_mm_cache")(lambda: self.images.clear())
        for path in ("/init_weight_transfer_engine", "/start_weight_update"):
            app.post(path)(lambda: Response())
        for path in ("/pause", "/resume", "/reset_prefix_cache", "/reset_encoder_cache"):
            app.post(path)(lambda: Response())
        return app

    def _models(self) -> dict[str, Any]:
        adapters = [{"id": name, "parent": BASE, "root": self.roots.get(name, "")} for name in self.adapters]
        return {"data": [{"id": BASE, "parent": None, "root": "/base"}, *adapters]}

    async def _tag(self, request: Request) -> Response:
        self.tag = (await request.json())["new_version"]
        self.log.append(f"tag {self.tag.rpartition('/')[2]}")
        return Response()

    async def _reload(self, request: Request) -> Response:
        directory = (await request.json())["kwargs"]["weights_path"]
        self._replace(load_file(Path(directory) / "model.safetensors"))
        self.log.append("reload")
        return Response()

    def _replace(self, weights: dict[str, Tensor]) -> None:
        """Full weights by their names in a checkpoint, in a model of its own."""
        policy = copy.deepcopy(self._base)
        own = dict(policy.model.named_parameters())
        assert set(weights) == set(own)
        with torch.no_grad():
            for name, weight in weights.items():
                own[name].copy_(weight)
        self._base = policy

    async def _transfer(self, request: Request) -> Response:
        """A part of the weights, which lies in the buffer of this process that `memory` knows by its handle."""
        part = (await request.json())["update_info"]
        try:
            buffer = self.memory[part["ipc_handles_pickled"]]
        except RuntimeError as error:
            return _error(500, str(error))
        values = buffer[: sum(part["tensor_sizes"])].split(part["tensor_sizes"])
        for name, dtype, shape, value in zip(part["names"], part["dtype_names"], part["shapes"], values, strict=True):
            self._received[name] = value.clone().view(getattr(torch, dtype)).view(shape)
        self.log.append("part")
        return Response()

    def _finish_transfer(self) -> Response:
        self._replace(self._received)
        self._received = {}
        return Response()

    async def _load(self, request: Request) -> Response:
        body = await request.json()
        name = body["lora_name"]
        if name in self.adapters:
            return _error(400, f"The lora adapter '{name}' has already been loaded.")
        if self.full:
            return _error(500, self.full)
        with _loading:
            self.adapters[name] = load_policy(body["lora_path"])
        self.roots[name] = body["lora_path"]
        self.log.append(f"load {name}")
        return Response("Success")

    async def _unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        if self.adapters.pop(name, None) is None:
            return _error(404, f"The lora adapter '{name}' cannot be found.")
        self.log.append(f"unload {name}")
        return Response("Success")

    async def _generate(self, request: Request) -> Response:
        body = await request.json()
        if body["model"] != BASE and body["model"] not in self.adapters:
            return _error(404, f"The model `{body['model']}` does not exist.")
        try:
            prompt = self._expanded(body["token_ids"], body.get("content_parts", []))
        except ValueError as error:
            return _error(400, str(error))
        if "allowed_token_ids" in body["sampling_params"]:
            return JSONResponse(self._probe(body))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(0.01)
            while not self.hold.is_set():
                await asyncio.sleep(0.01)
            return self._sample(body, prompt)
        finally:
            self.in_flight -= 1

    def _expanded(self, ids: list[int], parts: list[dict[str, Any]]) -> list[int]:
        """The prompt with as many placeholders for each image as it has tokens; images with pixels are kept."""
        prompt, images = [], iter(parts)
        for token in ids:
            count = self._tokens_of(next(images), len(prompt)) if token == self._base.special.image_token_id else 1
            prompt += [token] * count
        return prompt

    def _tokens_of(self, part: dict[str, Any], at: int) -> int:
        name = part["uuid"]
        if part["url"] is not None:
            self.sent[name] += 1
            with Image.open(io.BytesIO(base64.b64decode(part["url"].partition(",")[2]))) as image:
                self.images[name] = self._base.image_tokens(image.height, image.width)
        if name not in self.images:
            raise ValueError(f"Cache miss for image at index {at} but data is not provided.")
        return self.images[name]

    def _sample(self, body: dict[str, Any], prompt: list[int]) -> Response:
        fault = self.faults.popleft() if self.faults else None
        if fault == 0:
            raise ConnectionAbortedError  # uvicorn answers 500 and closes
        if isinstance(fault, int):
            return _error(fault, "scripted", {"retry-after": "0"})
        sampling = body["sampling_params"]
        tokens = [sampling["seed"], sampling["stop_token_ids"][0]]
        if fault == "drift":
            prompt[0] += 1
        choice = {
            "token_ids": tokens,
            "logprobs": {"content": [{"token_id": token, "logprob": -0.5} for token in tokens]},
            "finish_reason": "stop",
            "weight_versions": [{"version": self.tag, "start": 0, "end": 2}],
        }
        self.log.append(f"sample {body['model']}")
        return JSONResponse({"model": body["model"], "prompt_token_ids": prompt, "choices": [choice]})

    def _probe(self, body: dict[str, Any]) -> dict[str, Any]:
        policy = self._base if self._ignores_adapters else self.adapters.get(body["model"], self._base)
        index = [probe.wire.token_ids for probe in self._canary.probes].index(body["token_ids"])
        choices = self._canary.choices
        logprobs = own_logprobs(policy, self._canary)[index * len(choices) :]
        entries = [{"token_id": token, "logprob": p} for token, p in zip(choices, logprobs, strict=False)]
        content = [{**entries[0], "top_logprobs": entries}]
        return {"prompt_token_ids": self._canary.probes[index].ids, "choices": [{"logprobs": {"content": content}}]}


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message}}, status, headers=headers)


@contextmanager
def served(app: FastAPI, port: int = 0) -> Iterator[str]:
    """The address of `app`, served by a thread."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            threading.Event().wait(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
