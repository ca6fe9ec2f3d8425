"""Behaviour cloning: what is imitated, in which format, and that imitating lowers the loss."""

import asyncio
import io
import itertools
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agent_fakes import ByteCodec
from PIL import Image
from torch.nn.functional import cross_entropy

from cua_agent import prompts
from cua_agent.actions import Coordinates, Point, ReportTaskComplete, Tap, Target
from cua_agent.agent import AgentConfig
from cua_agent.cloning.clone import CloneSchedule, clone, imitation_loss
from cua_agent.cloning.demonstrations import Noise, balanced_task, demonstrate
from cua_agent.cloning.example import Example, as_example
from cua_agent.cloning.examples import (
    DESCRIBE,
    EMPHASIS,
    LOCATE,
    ExampleStream,
    Mix,
    RecordedStream,
    collate_examples,
    description_example,
    random_screen,
)
from cua_agent.cloning.measure import describe_tally, measure_success
from cua_agent.cloning.recordings import Recordings
from cua_agent.conversation import Codec
from cua_agent.envs.pocket.describe import describe_screen
from cua_agent.envs.pocket.draw import draw
from cua_agent.envs.pocket.environment import PocketEnvironment
from cua_agent.envs.pocket.oracle import Expert
from cua_agent.models.loaders import load_policy
from cua_agent.models.policy import PolicyModel
from cua_agent.models.tiny import build_model, build_tokenizer, save_tiny, start_afresh
from cua_agent.parsing import parse_tool_call, render_tool_call
from cua_agent.prompts import END_OF_TURN
from cua_agent.tasks import CUATask, get_training_tasks
from cua_agent.trajectory import NO_VERSION, Trajectory

TASKS = {task.id: task for task in get_training_tasks()}
WORD, TOGGLE = TASKS["word/w0"], TASKS["toggle/wi-fi-on/w0"]
CODEC = ByteCodec()
BRIEF = prompts.system_prompt("brief", "target")


def demonstration(task: CUATask, seed: int, noise: Noise = Noise(), rng_seed: int = 0) -> Trajectory:  # noqa: B008
    return asyncio.run(demonstrate(CODEC, task, seed, noise, random.Random(rng_seed)))


def spans(mask: np.ndarray) -> list[slice]:
    """Runs of ones."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    return [slice(a, b) for a, b in edges.reshape(-1, 2).tolist()]


def experts_text(task: CUATask, seed: int) -> str:
    """The conversation of an undisturbed expert, put together from the prompts by hand."""

    async def play() -> str:
        environment = PocketEnvironment()
        await environment.reset(task, seed)
        expert = Expert(task.validation, environment.before)
        text = prompts.first_prompt(BRIEF, task.description, 3)
        while True:
            action = expert.action(environment.state)
            text += render_tool_call(action) + END_OF_TURN
            if isinstance(action, ReportTaskComplete):
                return text
            fields = {name: value for name, value in vars(action).items() if isinstance(value, Target)}
            points = {name: await environment.locate(target.name) for name, target in fields.items()}
            result = await environment.step(type(action)(**vars(action) | points))
            text += prompts.next_prompt(result.observation.text, 3, ended=True)

    return asyncio.run(play())


@pytest.mark.parametrize("task", [WORD, TOGGLE, TASKS["contact/w0"]], ids=lambda task: task.category)
@pytest.mark.parametrize("seed", [0, 7])
def test_a_demonstration_is_what_the_agent_loop_writes(task: CUATask, seed: int) -> None:
    row = demonstration(task, seed)
    assert row.success
    assert CODEC.decode(row.input_ids.tolist()) == experts_text(task, seed)
    assert len(row.images) == len(row.turns) == len(spans(row.loss_mask))
    example = as_example(row)
    assert np.array_equal(example.labels, row.loss_mask)  # without noise every call is imitated
    assert AgentConfig().prompt == "brief" and AgentConfig().grounding == "target"


def test_demonstrations_repeat_and_seeds_differ() -> None:
    noise = Noise(explore=0.3, mistake=0.1)
    first, same, other = (demonstration(TOGGLE, 1, noise, rng_seed) for rng_seed in (0, 0, 1))
    assert np.array_equal(first.input_ids, same.input_ids)
    assert not np.array_equal(first.input_ids, other.input_ids)


def test_explored_turns_are_executed_but_not_labelled() -> None:
    explored = labelled = 0
    for seed in range(20):
        row = demonstration(TOGGLE, seed, Noise(explore=0.4), rng_seed=seed)
        example = as_example(row)
        for span in spans(row.loss_mask):
            (label,) = set(example.labels[span].tolist())
            assert label == (set(row.versions[span].tolist()) != {NO_VERSION})
            explored, labelled = explored + (label == 0), labelled + label
        assert not example.labels[row.loss_mask == 0].any()
        # Nobody explores a premature report, so an episode in time ends as the expert ends it.
        if row.turns[-1].text.count("report_task_complete"):
            assert row.success and example.labels[-1] == 1
    assert 0.2 < explored / (explored + labelled) < 0.6


def test_mistakes_are_labelled() -> None:
    rows = [demonstration(TOGGLE, seed, Noise(mistake=1.0), rng_seed=seed) for seed in range(12)]
    for row in rows:
        assert np.array_equal(as_example(row).labels, row.loss_mask)
    assert sum(row.success for row in rows) < 10  # reports by chance may be right
    reports = sum("report_task_complete" in row.turns[-1].text for row in rows)
    assert reports > 0


@pytest.mark.parametrize("coordinates", ["relative", "absolute"])
def test_positions_are_those_of_the_elements_in_the_models_scale(coordinates: Coordinates) -> None:
    codec = ByteCodec()
    codec.coordinates = coordinates
    agent = AgentConfig(grounding="coordinates", prompt="full", max_length=20_000)
    named, placed = (
        asyncio.run(demonstrate(codec, WORD, 3, Noise(), random.Random(0), how)) for how in (AgentConfig(), agent)
    )
    assert placed.success and len(placed.turns) == len(named.turns)
    assert prompts.system_prompt("full", "coordinates", coordinates) in codec.decode(placed.input_ids.tolist())
    for ours, theirs in zip(placed.turns, named.turns, strict=True):
        assert (ours.point is None) == (theirs.point is None)
        assert ours.point is None or ours.point == pytest.approx(theirs.point, abs=5)  # half a pixel of 128
    assert all("target" not in turn.text for turn in placed.turns)
    (first, *_) = placed.turns
    call = parse_tool_call(first.text, codec.coordinate_space(*placed.images[0].shape[:2]))
    assert isinstance(call, Tap) and isinstance(call.at, Point)


def test_a_mistake_at_nothing_is_a_position_on_the_screen() -> None:
    agent = AgentConfig(grounding="coordinates")
    for seed in range(10):
        row = asyncio.run(demonstrate(CODEC, TOGGLE, seed, Noise(mistake=1.0), random.Random(seed), agent))
        assert all(turn.action is not None and "target" not in turn.text for turn in row.turns)


def test_all_elements_and_their_places_are_asked_for_where_positions_are_given() -> None:
    agent = AgentConfig(grounding="coordinates")
    texts = [CODEC.decode(description_example(CODEC, 5, random.Random(n), agent).input_ids.tolist()) for n in range(12)]
    located = [text for text in texts if LOCATE in text]
    assert 0 < len(located) < len(texts)
    assert all(("Home [" in text and "], Back [" in text) or "Back [" in text for text in located)


def test_categories_are_drawn_evenly_and_emphasis_counts_more() -> None:
    tasks, rng = get_training_tasks(), random.Random(0)
    categories = {task.category for task in tasks}
    even = Counter(balanced_task(tasks, rng).category for _ in range(4500))
    assert set(even) == categories
    assert all(400 < n < 600 for n in even.values())  # 4500 over 9 categories
    extra = ("word",) * (EMPHASIS - 1)
    loud = Counter(balanced_task(tasks, rng, extra).category for _ in range(4400))
    assert 1000 < loud["word"] < 1400  # 3 of 11 lots
    assert all(300 < loud[category] < 500 for category in categories - {"word"})


def test_a_description_labels_the_answer_and_nothing_else() -> None:
    example = description_example(CODEC, 5, random.Random(3))
    state = random_screen(5, random.Random(3))
    answer = describe_screen(state) + END_OF_TURN
    assert CODEC.decode(example.input_ids[example.labels == 1].tolist()) == answer
    prompt = prompts.first_prompt(BRIEF, DESCRIBE, 3)
    assert CODEC.decode(example.input_ids[example.labels == 0].tolist()) == prompt
    assert example.labels.tolist() == sorted(example.labels.tolist())
    (image,) = example.images
    assert np.array_equal(image, np.asarray(draw(state)))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> PolicyModel:
    """An untrained model, smaller than the tiny one."""
    directory = tmp_path_factory.mktemp("small")
    words = sorted({word.strip(".") for task in get_training_tasks() for word in task.description.split()})
    tokenizer = build_tokenizer([task.description for task in get_training_tasks()], words)
    save_tiny(directory, build_model(tokenizer, 0, hidden=64, layers=1, heads=2, vision_depth=1), tokenizer)
    return load_policy(str(directory))


def mixed_examples(policy: PolicyModel) -> list[Example]:
    """Rows of several lengths, with one and several images of two sizes."""
    described = [description_example(policy, seed, random.Random(seed)) for seed in range(2)]
    shown = as_example(asyncio.run(demonstrate(policy, TOGGLE, 2, Noise(explore=0.3), random.Random(0))))
    page = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    prompt = policy.encode(prompts.first_prompt(BRIEF, "x", policy.image_tokens(32, 64)))
    answer = policy.encode(render_tool_call(Tap(Target("OK"))) + END_OF_TURN)
    labels = np.array([0] * len(prompt) + [1] * len(answer), dtype=np.int32)
    return [*described, Example(np.array(prompt + answer), labels, [page]), shown]


def test_collated_rows_are_the_examples_padded(small: PolicyModel) -> None:
    examples = mixed_examples(small)
    batch = collate_examples(small, examples)
    longest = max(len(example.input_ids) for example in examples)
    assert batch.input_ids.shape == batch.labels.shape == batch.attention_mask.shape == (len(examples), longest)
    assert batch.positions.shape == (3, len(examples), longest)
    for i, example in enumerate(examples):
        n = len(example.input_ids)
        assert batch.input_ids[i, :n].tolist() == example.input_ids.tolist()
        assert batch.labels[i, :n].tolist() == example.labels.tolist()
        assert np.array_equal(batch.positions[:, i, :n].numpy(), small.positions(example.input_ids, example.images))
        assert batch.attention_mask[i].tolist() == [True] * n + [False] * (longest - n)
        assert set(batch.input_ids[i, n:].tolist()) <= {small.special.pad_id}
        assert not batch.labels[i, n:].any()
    images = [image for example in examples for image in example.images]
    assert batch.pixels is not None and batch.grids is not None
    assert batch.grids.tolist() == [[1, image.shape[0] // 16, image.shape[1] // 16] for image in images]
    assert np.array_equal(batch.pixels.numpy().ravel(), np.concatenate([image.ravel() for image in images]))


def test_the_loss_is_that_of_each_row_alone(small: PolicyModel) -> None:
    examples = mixed_examples(small)
    expected = 0.0
    with torch.no_grad():
        for example in examples:
            values, grids = small.pixels(example.images)
            ids = torch.from_numpy(example.input_ids)[None]
            positions = torch.from_numpy(small.positions(example.input_ids, example.images))[:, None]
            logits = small.model(
                input_ids=ids, position_ids=positions, pixel_values=values, image_grid_thw=grids
            ).logits[0, :-1]
            chosen = torch.from_numpy(example.labels[1:]).bool()
            expected += float(cross_entropy(logits[chosen], ids[0, 1:][chosen], reduction="sum"))
        loss = float(imitation_loss(small, collate_examples(small, examples), torch.device("cpu")))
    assert loss == pytest.approx(expected, rel=1e-5)


def test_the_schedule_by_hand() -> None:
    schedule = CloneSchedule(steps=200, learning_rate=1.0, warmup=10, minutes=2.0)
    assert [schedule.rate(step, 0.0) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert schedule.rate(100, 0.5) == pytest.approx(0.05 + 0.95 / 2)  # half of the cosine
    assert schedule.rate(199, 1.0) == schedule.rate(300, 1.5) == pytest.approx(0.05)
    assert schedule.progress(50, elapsed_s=6.0) == 0.25  # steps are nearer their end than minutes
    assert schedule.progress(50, elapsed_s=60.0) == 0.5


@pytest.mark.slow
def test_imitation_lowers_the_loss(small: PolicyModel) -> None:
    examples = mixed_examples(small)
    chunks = [collate_examples(small, examples[:2]), collate_examples(small, examples[2:])]
    losses: list[float] = []
    clone(small, itertools.repeat(chunks), CloneSchedule(12, 3e-3, warmup=2), lambda _, loss: losses.append(loss))
    assert len(losses) == 12
    assert losses[-1] < 0.5 * losses[0]
    assert not small.model.training
    # What is reported is the mean over labelled tokens.
    tokens = sum(int(example.labels.sum()) for example in examples)
    with torch.no_grad():
        after = sum(float(imitation_loss(small, chunk, torch.device("cpu"))) for chunk in chunks) / tokens
    assert after < losses[-1] * 1.1


def test_the_stream_repeats_and_uses_cloning_seeds_only(small: PolicyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    async def spy(codec: Codec, task: CUATask, seed: int, *more: Any) -> Trajectory:
        seeds.append(seed)
        return await demonstrate(codec, task, seed, *more)

    monkeypatch.setattr("cua_agent.cloning.examples.demonstrate", spy)
    mix = Mix(batch_size=8, noise=Noise(explore=0.1), descriptions=0.4)
    first, same, other = (next(iter(ExampleStream(small, mix, seed))) for seed in (0, 0, 1))
    assert sum(len(chunk.input_ids) for chunk in first) == 8
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(first, same, strict=True))
    assert any(
        a.input_ids.shape != b.input_ids.shape or not torch.equal(a.input_ids, b.input_ids)
        for a, b in zip(first, other, strict=True)
    )
    assert seeds and all(0 <= seed < 1_000_000_000 for seed in seeds)


def test_recorded_examples_all_come_before_any_again(small: PolicyModel) -> None:
    examples = mixed_examples(small)[:3]
    stream = iter(RecordedStream(small, examples, batch_size=1))
    for _ in range(3):
        lap = [chunk.input_ids.shape[1] for chunk in (next(stream)[0] for _ in examples)]
        assert sorted(lap) == sorted(len(example.input_ids) for example in examples)


def test_a_fresh_start_forgets_everything_and_repeats(small: PolicyModel) -> None:
    before = {name: weight.detach().clone() for name, weight in small.model.named_parameters()}
    drawn = []
    for seed in (1, 1, 2):
        start_afresh(small, seed)
        drawn.append({name: weight.detach().clone() for name, weight in small.model.named_parameters()})
    matrices = [name for name, weight in before.items() if weight.ndim > 1]
    assert all(not torch.equal(before[name], drawn[0][name]) for name in matrices)
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in before)
    assert all(not torch.equal(drawn[0][name], drawn[2][name]) for name in matrices)
    small.load_trained(before)


def png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (160, 210), colour).save(buffer, "PNG")
    return buffer.getvalue()


CALLS = [render_tool_call(Tap(Target(name))) for name in ("one", "two", "go")]


@pytest.fixture
def recordings(tmp_path: Path) -> Recordings:
    """Two episodes of one page (two steps and one) in the layout of scripts/record_miniwob_demos.py."""
    pngs = [png((255, 0, 0)), png((0, 255, 0)), png((0, 0, 255))]
    np.savez(
        tmp_path / "demos.npz",
        episode_task=np.array(["click-two", "click-two"]),
        episode_goal=np.array(["Click one, then two.", "Click go."]),
        episode_seed=np.array([0, 1]),
        step_episode=np.array([0, 0, 1]),
        step_text=np.array(["", "", ""]),
        step_action=np.array(CALLS),
        step_frame=np.array([0, 1, 2]),
        frame_png=np.frombuffer(b"".join(pngs), dtype=np.uint8),
        frame_end=np.cumsum([len(data) for data in pngs]),
    )
    return Recordings(tmp_path / "demos.npz", size=(224, 160))


LONG = (
    prompts.first_prompt(BRIEF, "Click one, then two.", 3)
    + CALLS[0] + END_OF_TURN + prompts.next_prompt("", 3, ended=True) + CALLS[1] + END_OF_TURN
)  # fmt: skip
SHORT = prompts.first_prompt(BRIEF, "Click go.", 3) + CALLS[2] + END_OF_TURN


def test_recordings_become_conversations(recordings: Recordings) -> None:
    rng = random.Random(0)
    examples = [recordings.example(CODEC, rng, Noise()) for _ in range(20)]
    by_text = {CODEC.decode(example.input_ids.tolist()): example for example in examples}
    assert set(by_text) == {LONG, SHORT}
    long = by_text[LONG]
    assert [CODEC.decode(long.input_ids[span].tolist()) for span in spans(long.labels)] == [
        call + END_OF_TURN for call in CALLS[:2]
    ]
    assert [image.shape for image in long.images] == [(224, 160, 3)] * 2
    assert [image[5, 5].tolist() for image in long.images] == [[255, 0, 0], [0, 255, 0]]
    assert by_text[SHORT].images[0][5, 5].tolist() == [0, 0, 255]
    assert recordings.texts == ["Click one, then two.", "Click go.", *CALLS]


def test_a_recordings_mistake_is_imitated_and_ends_it(recordings: Recordings) -> None:
    rng = random.Random(0)
    seen: Counter[str] = Counter()
    for _ in range(60):
        example = recordings.example(CODEC, rng, Noise(mistake=1.0))
        (span,) = spans(example.labels)
        assert len(example.images) == 1
        seen[CODEC.decode(example.input_ids[span].tolist()).removesuffix(END_OF_TURN)] += 1
    assert set(seen) == set(CALLS)


def test_a_tally_in_words() -> None:
    assert describe_tally({"alarm": (1, 4), "word": (3, 4)}) == "0.500 of 8 (alarm 0.25, word 0.75)"
    assert describe_tally({}) == "0.000 of 0 ()"


def test_success_is_measured_by_playing(small: PolicyModel) -> None:
    tally = asyncio.run(measure_success(small, 6, greedy=True))
    assert sum(total for _, total in tally.values()) == 6
    assert set(tally) <= {task.category for task in get_training_tasks()}
    assert all(0 <= successes <= total for successes, total in tally.values())
