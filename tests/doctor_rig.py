"""The doctor's command, and a server with vLLM's interface that really samples the built-in model."""

from __future__ import annotations

import base64
import copy
import io
import itertools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image

from cua_agent.inference.base import GenerateRequest
from cua_agent.inference.local import LocalEngine
from cua_agent.models.policy import PolicyModel
from cua_agent.prompts import first_prompt
from tests.vllm.reference import full_logprobs
from tests.vllm_fakes import FakeVllm, server_info
from trainers.doctor.__main__ import main

GOOD = server_info(max_model_len=2048, images=16, lora={"max_lora_rank": 16, "max_loras": 4})
QUICK = ("rollout.group_size=2", "rollout.groups_per_step=2", "rollout.concurrency=4", "threads=1")


@dataclass(frozen=True)
class Row:
    status: str
    what: str
    remedy: str


@dataclass(frozen=True)
class Report:
    """What the command said: its exit status, and the rows by check."""

    status: int
    rows: dict[str, Row]

    def of(self, status: str) -> dict[str, str]:
        """What was found, of the checks that came out so."""
        return {name: row.what for name, row in self.rows.items() if row.status == status}


def doctor(capsys: pytest.CaptureFixture[str], *words: str) -> Report:
    """The command as a program calls it."""
    capsys.readouterr()
    status = main([*words, "--json"])
    answer = json.loads(capsys.readouterr().out)
    rows = {row["check"]: Row(row["status"], row["what"], row["remedy"]) for row in answer["checks"]}
    assert answer["ready"] == (status == 0) == ("error" not in {row.status for row in rows.values()})
    return Report(status, rows)


class HonestVllm(FakeVllm):
    """Samples `base`, or an adapter of it, token by token. It may be made to drop images, to renumber the tokens of a
    prompt as a server does that takes text, or to have other weights than the policy's below its adapters."""

    def __init__(
        self, base: PolicyModel, *, drops_images: bool = False, retokenises: bool = False, other_weights: bool = False
    ) -> None:
        super().__init__(base)
        self.info: dict[str, Any] | None = copy.deepcopy(GOOD)
        self._drops_images = drops_images
        self._retokenises = retokenises
        self._other_weights = other_weights
        self._numbers = itertools.count()
        self._pixels: dict[str, npt.NDArray[np.uint8]] = {}

    async def _load(self, request: Request) -> Response:
        answer = await super()._load(request)
        if self._other_weights:
            with torch.no_grad():
                for policy in self.adapters.values():
                    policy.base_model.model.language_model.norm.weight.mul_(1.5)
        return answer

    def app(self) -> FastAPI:
        app = super().app()
        if self.info is None:  # not in development mode
            app.router.routes[:] = [route for route in app.routes if getattr(route, "path", "") != "/server_info"]
        app.post("/v1/chat/completions")(self._chat)
        return app

    async def _generate(self, request: Request) -> Response:
        body = await request.json()
        policy = self.adapters.get(body["model"], self._base)
        for part in body.get("content_parts", []):
            if part["url"] is not None:
                self._pixels[part["uuid"]] = _decoded(part["url"])
        images = [self._pixels[part["uuid"]] for part in body.get("content_parts", [])]
        counts = [policy.image_tokens(*image.shape[:2]) for image in images]
        prompt = _expanded(body["token_ids"], policy.special.image_token_id, counts)
        seen = self._seen(images)
        if "allowed_token_ids" in body["sampling_params"]:
            return JSONResponse(_probe(policy, prompt, seen, body["sampling_params"]["allowed_token_ids"]))
        return JSONResponse(await self._sampled(body, policy, prompt, seen))

    async def _sampled(
        self, body: dict[str, Any], policy: PolicyModel, prompt: list[int], images: list[npt.NDArray[np.uint8]]
    ) -> dict[str, Any]:
        self.log.append(f"sample {body['model']}")
        sampling, name = body["sampling_params"], f"c{next(self._numbers)}"
        temperature = sampling["temperature"] or 1.0
        engine = LocalEngine(policy, max_batch=1)
        answer = await engine.generate(
            GenerateRequest(name, prompt, images, sampling["max_tokens"], temperature, seed=sampling["seed"])
        )
        await engine.close()
        content = [{"token_id": t, "logprob": p} for t, p in zip(answer.output_ids, answer.logprobs, strict=True)]
        choice = {
            "token_ids": answer.output_ids,
            "logprobs": {"content": content},
            "finish_reason": answer.stop_reason,
            "weight_versions": [{"version": self.tag, "start": 0, "end": len(content)}],
        }
        reported = [*prompt[:-1], prompt[-1] + 1] if self._retokenises else prompt
        return {"model": body["model"], "prompt_token_ids": reported, "choices": [choice]}

    async def _chat(self, request: Request) -> Response:
        parts = (await request.json())["messages"][0]["content"]
        images = [_decoded(part["image_url"]["url"]) for part in parts if part["type"] == "image_url"]
        count = sum(self._base.image_tokens(*image.shape[:2]) for image in images)
        ids = self._base.encode(first_prompt("You see.", "What colour is this?", count))
        scores, tokens = full_logprobs(self._base, ids, self._seen(images), 1.0)[-1].topk(5)
        top = [{"token": str(t), "logprob": p} for t, p in zip(tokens.tolist(), scores.tolist(), strict=True)]
        choice = {"logprobs": {"content": [{**top[0], "top_logprobs": top}]}}
        return JSONResponse({"choices": [choice], "usage": {"prompt_tokens": len(ids)}})

    def _seen(self, images: list[npt.NDArray[np.uint8]]) -> list[npt.NDArray[np.uint8]]:
        return [np.zeros_like(image) for image in images] if self._drops_images else images


def _probe(
    policy: PolicyModel, prompt: list[int], images: list[npt.NDArray[np.uint8]], choices: list[int]
) -> dict[str, Any]:
    scores = torch.log_softmax(full_logprobs(policy, prompt, images, 1.0)[-1][choices], -1).tolist()
    entries = [{"token_id": token, "logprob": score} for token, score in zip(choices, scores, strict=True)]
    content = [{**entries[0], "top_logprobs": entries}]
    return {"prompt_token_ids": prompt, "choices": [{"logprobs": {"content": content}}]}


def _expanded(ids: list[int], placeholder: int, counts: list[int]) -> list[int]:
    left = iter(counts)
    return [token for each in ids for token in [each] * (next(left) if each == placeholder else 1)]


def _decoded(url: str) -> npt.NDArray[np.uint8]:
    data = base64.b64decode(url.partition(",")[2])
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))
