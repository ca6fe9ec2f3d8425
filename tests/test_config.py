import dataclasses
import runpy
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cua_agent.envs.registry import BUILT_IN, make_world, options_of
from tests.refusals import refusal
from trainers.config import ConfigError, TrainConfig, from_mapping
from trainers.config.compose import CONF, GROUPS, choices, load_config
from trainers.config.reference import COMMON_KEYS, sections, world_sections
from trainers.config.validation import fields_of, leaves

LEAVES = {key: kind for key, kind in fields_of(TrainConfig) if not dataclasses.is_dataclass(kind)}


def value_of(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def another_value(key: str, kind: Any, default: Any) -> Any:
    """A legal value of `key` that is not its default, except where only one value is legal."""
    special = {
        "lora.target_modules": ".*q_proj",
        "loader.device": "cuda:1",
        "lora.dropout": 0.25,
        "advantage.discount": 0.5,
        "loss.kind": "ppo_clip",  # what dual_clip goes with
        "loss.clip_epsilon": 0.3,
        "loss.clip_epsilon_high": 0.4,
        "loss.dual_clip": 3.0,
        "loss.sapo_temperatures": (0.5, 2.0),
        "loss.behaviour_metric": "ratio",  # what behaviour_action=clamp goes with
        "loss.behaviour_weight_floor": 0.5,
        "eval.target_success": 0.9,
        "optim.betas": (0.5, 0.75),
        "env.tasks": ("settings", "clock"),
        "max_minutes": 2.5,
        "eval.patience": 4,
        "reward.partial": 0.25,
        "sampling.floor": 0.25,
        "sampling.turns_start": 4,
        "replay.share": 0.25,
        "reward.function": None,  # it goes with no other key of the section: test_rewards
        "model.coordinates": "absolute",
        "model.thinking": True,
        "inference.servers": ("http://one:8000", "https://two/v1"),
        "inference.canary_tolerance": 0.5,
    }
    if key in special:
        return special[key]
    if get_origin(kind) is Literal:
        return get_args(kind)[-1]
    if isinstance(default, bool):
        return not default
    return default + 1 if isinstance(default, int | float) else "other"


def test_absent_keys_take_the_defaults() -> None:
    assert from_mapping({}) == TrainConfig()
    assert load_config(["env.tasks=[]", "backend=legacy"]) == TrainConfig(
        backend="legacy"
    )  # conf/env/pocket.yaml names the default mix


def test_every_key_is_reached_from_the_command_line_with_its_type(tmp_path) -> None:
    wanted = {key: another_value(key, kind, value_of(TrainConfig(), key)) for key, kind in LEAVES.items()}
    wanted |= {"model.path": str(tmp_path), "resume": str(tmp_path)}
    wanted["experiment"] = "quick"  # also the name of a group
    wanted |= {"env.tasks": ("toggle",), "env.name": "pocket", "env.args": TrainConfig().env.args}
    # What goes together with 4-bit weights, screens in words, the engine in process and Unsloth.
    wanted |= {"phase": 1, "loader.attn_implementation": "eager", "inference.sync": "adapter"}
    wanted |= {"loader.offload_activations": False}
    wanted |= {"scheduler.name": "none", "n_nodes": 1, "n_gpus": 0}  # phase 3 only: test_cluster_config
    written = {
        key: str(list(value)).replace("'", "") if isinstance(value, tuple) else value for key, value in wanted.items()
    }
    written["reward.function"] = "null"
    config = load_config([f"{key}={value}" for key, value in written.items() if key != "env.args"])
    reached = {key: value_of(config, key) for key in LEAVES}
    assert reached == wanted
    assert {key: type(value) for key, value in reached.items()} == {key: type(value) for key, value in wanted.items()}


@pytest.mark.parametrize("world", BUILT_IN)
def test_every_option_of_a_world_is_reached_from_the_command_line_with_its_type(world: str, monkeypatch) -> None:
    monkeypatch.setenv("ANOTHER_KEY", "no secret")
    kind = options_of(world)
    options = {key: kind for key, kind in fields_of(kind) if not dataclasses.is_dataclass(kind) and is_one_value(kind)}
    wanted = {key: another_value(key, kind, value_of(make_world(world, {}), key)) for key, kind in options.items()}
    wanted |= SPECIAL_OPTIONS.get(world, {})
    written = {key: str(list(value)) if isinstance(value, tuple) else value for key, value in wanted.items()}
    config = load_config([f"env={world}", *(f"env.args.{key}={value}" for key, value in written.items())])
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in wanted.items()}
    assert dict(leaves(config.env.args)).items() >= plain.items()
    reached = {key: value_of(config.env.world, key) for key in wanted}
    assert reached == wanted
    assert {key: type(value) for key, value in reached.items()} == {key: type(value) for key, value in wanted.items()}


def is_one_value(kind: Any) -> bool:
    """No list or mapping: those are the concern of the worlds' own tests."""
    return not {get_origin(part) for part in (kind, *get_args(kind))} & {dict, tuple}


SPECIAL_OPTIONS = {
    "browsergym": {"scale": 2.0},
    "pocket": {"latency.kind": "constant"},
    "gbox": {
        "base_url": "http://127.0.0.1:1",
        "api_key": "${oc.env:ANOTHER_KEY}",
        "scale": 0.5,
        "expires_in_s": 7200.0,
        "max_episodes": 7,
    },
    "mobilegym": {"url": "http://127.0.0.1:1"},
    "openenv": {"base_url": "http://127.0.0.1:1"},
    "android": {"serials": ("emulator-5554",), "clear": ("com.android.chrome",)},
}


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_every_preset_composes(group: str) -> None:
    needs = {
        "unsloth": ["loader.device=cuda"],  # where it reads images
        "slurm": ["scheduler.trust_network=true"],
    }
    for name in choices(group):
        config = load_config([f"{group}={name}", *needs.get(name, [])])
        if group in ("backend", "experiment"):
            assert getattr(config, group) == name


def test_presets_set_what_they_are_for() -> None:
    assert load_config(["experiment=pocket_lora"]).lora.enabled
    assert load_config(["experiment=miniwob"]).env.name == "miniwob"
    for preset, path in (("qwen3_vl_4b", "Qwen/Qwen3-VL-4B-Instruct"), ("qwen3_vl_32b", "Qwen/Qwen3-VL-32B-Instruct")):
        config = load_config([f"model={preset}"])
        assert (config.model.path, config.model.dtype, config.lora.enabled) == (path, "bfloat16", True)


def test_the_command_line_wins_over_an_experiment() -> None:
    config = load_config(["experiment=miniwob", "env=pocket", "rollout.concurrency=3"])
    assert (config.env.name, config.rollout.concurrency) == ("pocket", 3)


def test_model_takes_a_directory_or_a_hub_id(tmp_path) -> None:
    odd = tmp_path / "it's (a) model"
    odd.mkdir()
    assert load_config([f"model={odd}"]).model.path == str(odd)
    assert load_config(["model=Qwen/Qwen3-VL-4B-Instruct"]).model.path == "Qwen/Qwen3-VL-4B-Instruct"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rollout.group_size=1", ["rollout.group_size=1", "greater than or equal to 2"]),
        ("rollout.group_size=true", ["rollout.group_size=true", "integer"]),
        ("rollout.group_size=2.0", ["rollout.group_size=2.0", "integer"]),
        ("max_steps=", ["max_steps=", "integer"]),
        ("seed=null", ["seed=null", "integer"]),
        ("optim.learning_rate=-1e-4", ["optim.learning_rate=-0.0001", "greater than 0"]),
        ("optim.learning_rate=nan", ["optim.learning_rate=NaN", "finite"]),
        ("optim.betas=[0.9]", ["optim.betas", "too few"]),
        ("optim.betas=[0.9,1.0]", ["optim.betas=1.0", "less than 1"]),
        ("lora.dropout=1", ["lora.dropout=1", "less than 1"]),
        ("lora.enabled=maybe", ["lora.enabled=maybe", "boolean"]),
        ("lora.target_modules='('", ["lora.target_modules=(", "not a regular expression"]),
        ("env.args.layout=random", ["env.args.layout=random", "'fixed', 'themed' or 'shuffled'"]),
        ("env.args.latency=2", ["env.args.latency=2", "kind, mean_s, sigma"]),
        ("env.args.latency.mean_s=2", ["env.args.latency", "kind=none with mean_s=2"]),
        ("env.args.latency.kind=constant", ["env.args.latency", "kind=constant with mean_s=0"]),
        ("loader.device=tpu", ["loader.device=tpu", "cuda"]),
        ("eval.target_success=1.5", ["eval.target_success=1.5", "less than or equal to 1"]),
        ("eval.patience=0", ["eval.patience=0", "greater than or equal to 1"]),
        ("run_name=../up", ["run_name=../up", "match"]),
        ("backend=nothing", ["backend=nothing", "allowed: areal, legacy"]),
        ("env=nowhere", ["env=nowhere", "android, browsergym, gbox, gbox_local, gymnasium", "mobilegym, openenv"]),
        ("experiment=null", ["experiment=null", "default"]),
        ("model=qwen3_vl_4", ["model=qwen3_vl_4", "qwen3_vl_4b", "a directory"]),
        ("model=/no/such/model", ["model.path=/no/such/model", "no such directory"]),
        ("model.path=tinny", ["model.path=tinny", "no such directory", "tiny"]),
        ("resume=no/such/run", ["resume=no/such/run", "no such directory"]),
        (f"resume={'1' * 300}", ["resume=111", "no such directory"]),
        ("resume='~nobody_of_that_name/run'", ["resume=~nobody", "no such directory"]),
        (f"model.path={'a/' * 40}{'1' * 300}", ["model.path=a/a/", "no such directory"]),
        ("rollout.grup_size=4", ["rollout.grup_size=4", "did you mean rollout.group_size?"]),
        ("group_size=4", ["group_size=4", "did you mean rollout.group_size?"]),
        ("++zzz=4", ["zzz=4", "unknown key", "max_steps"]),
        ("optim.zzz=4", ["optim.zzz=4", "unknown key", "learning_rate"]),
        ("seed.zzz=4", ["seed.zzz=4", "unknown key"]),
        ("rollout={zzz:4}", ["rollout.zzz=4", "unknown key", "group_size"]),
        (f"{'x' * 500}={'y' * 500}", ["unknown key"]),
        ("max_steps", ["max_steps", "key=value"]),
        ("max_steps=[1", ["max_steps=[1"]),
        ("max_steps=1\nseed=2", ["max_steps=1 seed=2"]),
        ("max_steps=1,2", ["max_steps=1,2", "one value only"]),
        ("run_name=${oc.env:NO_SUCH_VARIABLE}", ["NO_SUCH_VARIABLE"]),
        ("run_name=${nothing}", ["nothing"]),
    ],
)
def test_refused_with_one_line_that_names_key_value_and_what_is_allowed(override: str, words: list[str]) -> None:
    message = refusal(override)
    assert [word for word in words if word not in message] == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)
ANY_KEY = st.sampled_from(sorted(LEAVES)) | st.text(max_size=20)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(ANY_KEY, JSON)
def test_any_value_of_any_key_is_taken_or_refused_in_one_line(key: str, value: Any) -> None:
    tree: Any = value
    for part in reversed(key.split(".")):
        tree = {part: tree}
    try:
        assert isinstance(from_mapping(tree), TrainConfig)
    except ConfigError as error:
        assert "\n" not in str(error)
        assert len(str(error)) <= 400


def test_every_key_has_help_and_the_common_ones_exist() -> None:
    keys = {key.name: key for section in sections() for key in section.keys}
    assert set(keys) == set(LEAVES)
    assert [name for name, key in keys.items() if not key.help] == []
    options = {key.name: key for section in world_sections() for key in section.keys}
    assert [name for name, key in options.items() if not key.help] == []
    assert set(COMMON_KEYS) <= {*keys, *options}


def test_the_reference_shows_the_defaults_that_a_run_uses() -> None:
    shown = {key.name: key.default for section in sections() for key in section.keys}
    assert shown["optim.learning_rate"] == "0.00015, legacy: 0.0002"
    assert shown["rollout.max_staleness"] == "2, legacy: 0"
    assert shown["backend"] == "areal"
    assert shown["env.tasks"] == "[battery,brightness,notification,timeout,word]"
    assert shown["run_name"] == "null"


def test_the_reference_document_is_up_to_date() -> None:
    script = runpy.run_path(str(CONF.resolve().parent / "scripts" / "make_config_docs.py"))
    assert script["TARGET"].read_text(encoding="utf-8") == script["render"](), "run: make docs"
