"""Cloning a teacher that stands behind an OpenAI-compatible server."""

import asyncio
import base64
import hashlib
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cua_agent.agent import AgentConfig, StandaloneGBoxCUAAgent
from cua_agent.cloning.demonstrations import ExpertEngine, Noise
from cua_agent.envs.pocket.environment import PocketEnvironment
from cua_agent.inference.base import GenerateRequest, GenerateResponse
from cua_agent.models.loaders import load_policy
from cua_agent.prompts import first_prompt, next_prompt
from tests.agent_fakes import ByteCodec
from trainers.clone.__main__ import main
from trainers.clone.chat import messages_of, text_of
from trainers.clone.options import CloneConfig
from trainers.clone.teacher import _specs, teacher_examples
from trainers.components import agent_config
from trainers.config import ConfigError, TrainConfig
from trainers.config.compose import load_config

RED, BLUE = (np.full((4, 4, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))


def test_a_conversation_goes_out_as_chat_messages_with_its_pictures() -> None:
    text = first_prompt("Be good.", "Turn it on", 3) + "<tool_call>\n{}\n</tool_call><|im_end|>"
    text += next_prompt("", 3, ended=True)
    system, goal, call, result = messages_of(text, [RED, BLUE])
    assert (system, call) == (
        {"role": "system", "content": "Be good."},
        {"role": "assistant", "content": "<tool_call>\n{}\n</tool_call>"},
    )
    assert [part["type"] for part in goal["content"]] == ["text", "image_url"]
    assert goal["content"][0]["text"] == "Turn it on"
    assert result["content"][0]["text"] == "<tool_response>\nok\n</tool_response>"
    for message, pixels in ((goal, RED), (result, BLUE)):
        assert (decoded(message["content"][1]) == pixels).all()
    for images in ([RED], [RED, BLUE, RED]):
        with pytest.raises(ValueError, match="screenshots than the conversation shows"):
            messages_of(text, images)


def test_a_screen_in_words_and_an_unended_turn_go_out_as_text() -> None:
    text = first_prompt("S", "goal", 0, "a button") + "cut" + next_prompt("", 0, ended=False, screen="a box")
    assert [message["content"] for message in messages_of(text, [])] == [
        "S",
        "goal\n<screen>\na button\n</screen>",
        "cut",
        "<tool_response>\nok\n</tool_response>\n<screen>\na box\n</screen>",
    ]


def test_calls_beside_the_text_and_thoughts_are_written_into_it() -> None:
    call = {"function": {"name": "sleep", "arguments": '{"seconds": 1}'}}
    written = '<tool_call>\n{"name": "sleep", "arguments": {"seconds": 1}}\n</tool_call>'
    assert text_of({"content": None, "tool_calls": [call]}, thinks=False) == written
    said = {"content": "Now.", "reasoning_content": "I wonder."}
    assert text_of(said, thinks=False) == "Now."
    assert text_of(said, thinks=True) == "I wonder.\n</think>\n\nNow."


def decoded(part: dict[str, Any]) -> np.ndarray:
    url = part["image_url"]["url"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))


def name_of(goal: str, screens: list[np.ndarray]) -> str:
    return hashlib.sha256(goal.encode() + b"".join(screen.tobytes() for screen in screens)).hexdigest()


@dataclass
class Teacher:
    """A server that knows what to say to a goal and the screens so far; `asked` are the bodies that it got."""

    url: str
    answers: dict[str, str]
    asked: list[dict[str, Any]] = field(default_factory=list)
    key: str | None = None


@pytest.fixture
def teacher() -> Iterator[Teacher]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def reply(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            if made.key is not None and self.headers["authorization"] != f"Bearer {made.key}":
                return self.reply(401, {"error": {"message": "a key is missing"}})
            return self.reply(200, {"data": [{"id": "wise"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            made.asked.append(body)
            users = [message["content"] for message in body["messages"] if message["role"] == "user"]
            screens = [decoded(part) for content in users for part in content if part["type"] == "image_url"]
            said = made.answers.get(name_of(users[0][0]["text"], screens), "I do not know.")
            self.reply(200, {"choices": [{"message": {"content": said}, "finish_reason": "stop"}]})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Teacher(f"http://127.0.0.1:{server.server_port}/v1", {})
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


def taught(options: CloneConfig, config: TrainConfig, known: int) -> dict[str, str]:
    """What the expert says in the first `known` episodes that the teacher will be asked to play."""
    answers: dict[str, str] = {}
    codec = ByteCodec()

    class Noted(ExpertEngine):
        async def generate(self, request: GenerateRequest) -> GenerateResponse:
            answer = await super().generate(request)
            said = codec.decode(answer.output_ids).removesuffix("<|im_end|>")
            answers[name_of(self._environment.task.description, request.images)] = said
            return answer

    async def play() -> None:
        import random

        for spec in _specs(options, config)[:known]:
            phone = PocketEnvironment()
            engine = Noted(codec, phone, Noise(), random.Random(0))
            agent = StandaloneGBoxCUAAgent(codec, engine, phone, AgentConfig(max_length=10**6))
            await agent.run_episode(spec.task, spec.seed, group_id="g", episode_id="e")

    asyncio.run(play())
    return answers


def test_what_the_teacher_does_well_is_told_as_the_student_is_told_it(teacher: Teacher) -> None:
    options = CloneConfig(teacher=teacher.url, teacher_episodes=5)
    config = load_config(["env.tasks=[notification]"])
    teacher.answers = taught(options, config, known=3)
    policy = load_policy("tiny")
    examples = teacher_examples(options, config, policy, agent_config(config))
    assert len(examples) == 3
    for example in examples:
        text, said = (
            policy.decode(ids.tolist()) for ids in (example.input_ids, example.input_ids[example.labels == 1])
        )
        assert text.startswith("<|im_start|>system\nYou control a phone.")  # the student's prompt, not the teacher's
        assert said.endswith('{"name": "report_task_complete", "arguments": {}}\n</tool_call><|im_end|>')
        assert len(example.images) == said.count("<tool_call>")
    first = teacher.asked[0]
    assert first["model"] == "wise" and "# Tools" in first["messages"][0]["content"]
    assert first["max_tokens"] == config.rollout.max_new_tokens


@pytest.mark.parametrize(("key", "said"), [(None, "no success in 2 episodes"), ("secret", "answered 401")])
def test_a_teacher_that_knows_nothing_or_wants_a_key_is_one_line(
    teacher: Teacher, key: str | None, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    teacher.key = key
    with pytest.raises(ConfigError, match=said):
        teacher_examples(
            CloneConfig(teacher=teacher.url, teacher_episodes=2),
            load_config(["env.tasks=[notification]", "rollout.max_turns=2"]),
            load_policy("tiny"),
            AgentConfig(max_turns=2),
        )
    assert main([f"teacher={teacher.url}", "source=outputs/run"]) == 2
    assert "one of them" in capsys.readouterr().err
