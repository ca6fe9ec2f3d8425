"""The recipes for real models: they compose, their servers take them, and they fit into the cards that they name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from benchmarks.gpu_recipes import RECIPES
from benchmarks.gpu_shapes import shape_config
from cua_agent.inference.vllm.plan import slots_for
from cua_agent.inference.vllm.serve import ServeOptions, parse_options
from cua_agent.models.memory import GIB, serving_memory, shape_of, training_memory
from trainers.config.compose import load_config
from trainers.distributed.torchrun import check_processes
from trainers.run.memory import training_settings

CONF = Path(__file__).parents[1] / "conf" / "experiment"
CARD = 79.6 * GIB
"""Memory of an H100 of 80 GB."""


def _served(name: str) -> ServeOptions:
    text = (CONF / f"qwen3_vl_{name}.yaml").read_text()
    command = re.search(r"cua_agent\.inference\.vllm serve (.*)", text)
    assert command is not None
    options, extra = parse_options(shlex.split(command[1]))
    assert not extra
    return options


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_composes_for_its_processes_and_its_server(name: str) -> None:
    config, served, recipe = load_config([f"experiment=qwen3_vl_{name}"]), _served(name), RECIPES[name]
    assert (config.env.name, config.inference.name, config.lora.enabled) == ("gbox", "vllm", True)
    assert config.loader.gradient_checkpointing
    assert served.model == config.model.path
    assert f"-{recipe.size.upper()}-" in config.model.path
    assert served.lora_rank >= config.lora.r
    assert served.max_images >= config.rollout.max_turns
    assert (served.max_length or 16384) >= config.model.max_length
    processes = len(recipe.training)
    check_processes(config, processes)
    assert slots_for(served.max_staleness) >= processes * slots_for(config.rollout.max_staleness)
    assert served.gpus == len(recipe.serving)
    told = parse_options([f"model={served.model}", *recipe.serve])[0]
    assert told == served  # what the benchmark runs is what the recipe says


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_into_its_cards(name: str) -> None:
    config, served, recipe = load_config([f"experiment=qwen3_vl_{name}"]), _served(name), RECIPES[name]
    shape = shape_of(shape_config(recipe.size))
    trainer = training_memory(shape, training_settings(config, len(recipe.training))).total
    server = serving_memory(shape, cards=served.gpus)
    share = served.gpu_memory * CARD
    assert server.kv_tokens(share) >= 10 * config.model.max_length
    shared = set(recipe.training) & set(recipe.serving)
    assert trainer + (share if shared else 0) < 0.95 * CARD
