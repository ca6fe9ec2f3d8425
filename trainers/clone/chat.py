"""A model behind an OpenAI-compatible server as an engine: conversations go out as chat messages with pictures.

It is for a teacher, whose episodes are imitated: what comes back are the codec's own tokens of the answer's text,
without log-probabilities, so nothing of it can be trained on by reinforcement.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx

from cua_agent.conversation import Codec, Screenshot
from cua_agent.inference.base import GenerateRequest, GenerateResponse, InferenceFailure
from cua_agent.inference.vllm.client import read_answer
from cua_agent.inference.vllm.images import data_url
from cua_agent.prompts import END_OF_TURN
from cua_agent.proxies import proxy_hint, proxy_options
from cua_agent.secrets import mask_text, read_key

KEY_VARIABLE = "OPENAI_API_KEY"
_TIMEOUT_S = 300.0
_CONNECT_TIMEOUT_S = 10.0
_MOST_SEED = 2**31
_MESSAGE = re.compile(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>|\Z)", re.DOTALL)
_PICTURE = re.compile(r"<\|vision_start\|>.*?<\|vision_end\|>", re.DOTALL)


class ChatEngine:
    """An `InferenceEngine` over `/chat/completions` of the server at `url`; `model` as it is called there (None: the
    first that it serves). `OPENAI_API_KEY` is its key, if it has one."""

    version = 0

    def __init__(self, codec: Codec, url: str, model: str | None = None, timeout_s: float = _TIMEOUT_S) -> None:
        self._codec = codec
        self._url = f"{url.rstrip('/').removesuffix('/v1')}/v1"
        key = read_key(KEY_VARIABLE)
        self._http = httpx.AsyncClient(
            headers={} if key is None else {"authorization": f"Bearer {key.get_secret_value()}"},
            timeout=httpx.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S),
            **proxy_options([self._url]),
        )
        self._model = model

    async def model(self) -> str:
        """What the model is called at the server. Raises `InferenceFailure`."""
        if self._model is None:
            served = await self._answer("GET", "models")
            try:
                self._model = str(served["data"][0]["id"])
            except (LookupError, TypeError) as error:
                raise InferenceFailure(f"{self._url}/models names no model") from error
        return self._model

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        text = self._codec.decode(request.input_ids)
        body = {
            "model": await self.model(),
            "messages": await asyncio.to_thread(messages_of, text, request.images),
            "temperature": 0.0 if request.greedy else request.temperature,
            "max_tokens": request.max_new_tokens,
            "seed": request.seed % _MOST_SEED,
        }
        answer = await self._answer("POST", "chat/completions", body)
        try:
            [choice, *_] = answer["choices"]
            said, cut = text_of(choice["message"], thinks=bool(self._codec.reply_prefix)), choice["finish_reason"]
        except (LookupError, TypeError, ValueError) as error:
            raise InferenceFailure(f"{self._url}: an answer without a message") from error
        ended = cut != "length"
        ids = self._codec.encode(said + (END_OF_TURN if ended else ""))
        return GenerateResponse(ids, [0.0] * len(ids), [self.version] * len(ids), "stop" if ended else "length")

    def release(self, conversation_id: str) -> None:
        del conversation_id

    def update_weights(self, version: int) -> None:
        raise NotImplementedError("a teacher does not learn")

    async def close(self) -> None:
        await self._http.aclose()

    async def _answer(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        url = f"{self._url}/{path}"
        try:
            response = await self._http.request(method, url, json=body)
        except httpx.TransportError as error:
            why = f"{type(error).__name__} {mask_text(str(error))}".rstrip()
            raise InferenceFailure(f"{url} gives no answer: {why}{proxy_hint(url)}") from error
        return read_answer(url, response)


def messages_of(text: str, images: Sequence[Screenshot]) -> list[dict[str, Any]]:
    """The conversation `text`, as `cua_agent.prompts` writes it, as chat messages; `images` are its screenshots in
    order. The model's turn that it ends with is left out. Raises `ValueError` when there are not as many pictures."""
    pictures = iter(images)
    spoken = _MESSAGE.findall(text)
    if spoken and spoken[-1][0] == "assistant":
        spoken.pop()
    messages = [{"role": role, "content": _content(said, pictures)} for role, said in spoken]
    if next(pictures, None) is not None:
        raise ValueError("more screenshots than the conversation shows")
    return messages


def text_of(message: Mapping[str, Any], *, thinks: bool) -> str:
    """What a chat message says in the form that the agent reads: calls that came apart from its text are written into
    it, and so is the thought of a model whose turns begin with one (`thinks`)."""
    text = str(message.get("content") or "")
    for call in message.get("tool_calls") or ():
        function = call["function"]
        said = {"name": function["name"], "arguments": json.loads(function["arguments"] or "{}")}
        text += f"<tool_call>\n{json.dumps(said, ensure_ascii=False)}\n</tool_call>"
    thought = str(message.get("reasoning_content") or "")
    return f"{thought}\n</think>\n\n{text}" if thinks else text


def _content(said: str, pictures: Iterator[Screenshot]) -> str | list[dict[str, Any]]:
    texts = _PICTURE.split(said)
    if len(texts) == 1:
        return said
    parts: list[dict[str, Any]] = []
    for place, text in enumerate(texts):
        if place:
            picture = next(pictures, None)
            if picture is None:
                raise ValueError("fewer screenshots than the conversation shows")
            parts.append({"type": "image_url", "image_url": {"url": data_url(picture)}})
        if text:
            parts.append({"type": "text", "text": text})
    return parts
