"""A server that dies, hangs or answers rubbish costs time, and nothing else."""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cua_agent.inference.base import InferenceFailure
from cua_agent.inference.vllm.build import serving_plan
from cua_agent.inference.vllm.engine import Patience, VllmEngine
from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from tests.vllm_fakes import FakeVllm, served
from tests.vllm_rig import base, change, checkpoint, generate, request
from trainers.run.checkpoint import save_weights

Change = Callable[[dict[str, Any]], Any]


def changed(**values: Any) -> Change:
    def change(answer: dict[str, Any]) -> Any:
        answer["choices"][0] |= values
        return answer

    return change


ONE_LOGPROB = {"content": [{"token_id": 5, "logprob": -0.5}]}
RUBBISH: dict[str, Change | bytes] = {
    "html": b"<html>Bad gateway</html>",
    "nothing": b"",
    "half of it": b'{"choices": [{"token_ids": [5',
    "a list": b"[]",
    "no choices": lambda answer: answer | {"choices": []},
    "no log-probs": changed(logprobs=None),
    "too few log-probs": changed(logprobs=ONE_LOGPROB),
    "too few tokens": changed(token_ids=[5]),
    "tokens in words": changed(token_ids=["five", "six"]),
    "weights of other tokens": changed(weight_versions=[{"version": "default", "start": 0, "end": 7}]),
    "no reason": changed(finish_reason=None),
}


class Unreliable:
    """`app`, whose answers to the next sampling requests are `spoilt` (None: cut off), and none comes while it
    `hangs`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.spoilt: deque[Change | bytes | None] = deque()
        self.hangs = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while self.hangs and scope["type"] == "http":
            await asyncio.sleep(0.01)
        if not (self.spoilt and scope.get("path", "").endswith("/generate")):
            await self._app(scope, receive, send)
            return
        sent: list[Message] = []

        async def keep(message: Message) -> None:
            sent.append(message)

        await self._app(scope, receive, keep)
        body = sent[1]["body"]
        if b"top_logprobs" not in body:  # the canary's answers stay whole
            body = self._spoil(body, self.spoilt.popleft())
        length = len(body or b"") if body is not None else 1000
        headers = [(b"content-type", b"application/json"), (b"content-length", str(length).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"choices"' if body is None else body})

    @staticmethod
    def _spoil(body: bytes, spoilt: Change | bytes | None) -> bytes | None:
        if spoilt is None or isinstance(spoilt, bytes):
            return spoilt
        return json.dumps(spoilt(json.loads(body))).encode()


def engine_of(*urls: str, patience: Patience) -> VllmEngine:
    policy = load_policy(checkpoint(), lora=LoraSpec(r=4))
    plan = serving_plan(policy, max_length=512, max_images=4, max_staleness=0)
    engine = VllmEngine(policy, urls, plan, save_weights, patience=patience)
    engine.update_weights(0)
    return engine


@pytest.mark.slow
def test_rubbish_is_asked_for_again_until_patience_is_over() -> None:
    app = Unreliable(FakeVllm(base()).app())
    with served(app) as url:  # type: ignore[arg-type]
        engine = engine_of(url, patience=Patience(server_s=3.0))
        for number, kind in enumerate([*RUBBISH.values(), None]):
            app.spoilt.append(kind)
            (response,) = generate(engine, request(seed=number))
            assert (response.output_ids[0], response.versions) == (number, [0, 0])
        assert engine.counters == {"turns": number + 1, "retries": number + 1, "drifts": 0, "restores": 0}
        app.spoilt.extend([b"<html>"] * 1000)
        with pytest.raises(InferenceFailure, match="cannot be read"):
            generate(engine, request())
        asyncio.run(engine.close())


@pytest.mark.slow
def test_one_of_two_servers_that_hangs_is_left_out_and_taken_back_with_its_weights() -> None:
    fakes = [FakeVllm(base()), FakeVllm(base())]
    hanging = Unreliable(fakes[1].app())
    with served(fakes[0].app()) as first, served(hanging) as second:  # type: ignore[arg-type]
        engine = engine_of(first, second, patience=Patience(in_flight=8, request_s=1.0, server_s=60.0))
        run = engine.weights_dir.name
        hanging.hangs = True
        responses = generate(engine, *(request(f"a{i}", seed=i) for i in range(4)))
        assert [response.output_ids[0] for response in responses] == [0, 1, 2, 3]
        change(engine._policy)
        engine.update_weights(1)
        assert f"load {run}-v1" not in fakes[1].log
        hanging.hangs = False
        fakes[1].restart()
        for i in range(200):
            generate(engine, request(f"b{i}"))
            if f"sample {run}-v1" in fakes[1].log:
                break
            time.sleep(0.1)
        asyncio.run(engine.close())
    after = fakes[1].log[fakes[1].log.index("restart") :]
    assert after[:3] == ["restart", f"load {run}-v1", f"sample {run}-v1"]
    assert not fakes[1].adapters


def test_a_server_that_does_not_say_what_it_holds_is_waited_for() -> None:
    fake = FakeVllm(base())
    app, answers = fake.app(), deque([b"<html>", b"{}", b'{"data": []}'])

    async def strange(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") != "/v1/models" or not answers:
            await app(scope, receive, send)
            return
        body = answers.popleft()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    with served(strange) as url:  # type: ignore[arg-type]
        engine = engine_of(url, patience=Patience(server_s=20.0))
        assert not answers
        asyncio.run(engine.close())
