"""Texts of the configuration stay as they were typed, on the command line and in files."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from trainers.compare.options import CompareConfig
from trainers.config import ConfigError, TrainConfig, compose, from_mapping
from trainers.config.compose import load_config
from trainers.config.from_env import convert, render
from trainers.config.overrides import parse_override
from trainers.config.texts import as_typed, text_keys
from trainers.run.directory import masked_config, to_yaml

pytestmark = pytest.mark.slow

TEXTS = text_keys(TrainConfig)
LOOKS_LIKE_SOMETHING_ELSE = [
    *("20240101_120000", "1_000", "4e12", "1.50", "0b111", "0x1f", "0o17", "007", "-1", "+1", ".5", "1.", "inf", "nan"),
    *(
        "yes",
        "no",
        "on",
        "off",
        "y",
        "true",
        "False",
        "~",
        "None",
        "nil",
        "2024-01-01",
        "2024-01-01T10:00:00",
        "12:30:45",
    ),
    *("a=b", "a,b", "a b", "(a)", "[a]", "{a}", "a:b", "a#b", "a: b", "# a", "- a", "*a", "&a", "!a", "%a", "@a", "<<"),
    *("it's", 'say "x"', "a\\b", "a\\", "\\", "\\'", "jürgen", "日本", "$HOME", "a/./b", "..", "it''s \\\\'"),
]
TEXT = st.sampled_from(LOOKS_LIKE_SOMETHING_ELSE) | st.text(min_size=1, max_size=30)


def is_markup(text: str) -> bool:
    """What keeps a meaning of its own: `null`, interpolations, quotes around everything."""
    in_quotes = len(text) > 1 and text[0] in "'\"" and text[-1] == text[0]
    return in_quotes or text.lower() == "null" or "${" in text


def test_the_text_keys_are_found() -> None:
    assert {"run_name", "output_dir", "resume", "model.path", "lora.target_modules"} <= set(TEXTS)
    assert {key for key, shape in TEXTS.items() if shape == "texts"} == {"env.tasks", "inference.servers"}
    assert not {"backend", "seed", "phase", "model.dtype", "optim.betas"} & set(TEXTS)
    assert text_keys(CompareConfig) == {"runs": "texts", "backends": "texts", "out": "text"}


@settings(deadline=None, max_examples=400)
@given(st.sampled_from(sorted(key for key, shape in TEXTS.items() if shape == "text")), TEXT)
@example("run_name", "20240101_120000")
@example("output_dir", "a\\'b\\")
def test_any_text_arrives_as_it_was_typed(key: str, text: str) -> None:
    assume(not is_markup(text) and text.isprintable())
    assert parse_override(f"{key}={text}") == (key, text)
    assert parse_override(f"++{key}={text}") == (key, text)


_WORDS = st.text(st.characters(categories=["L", "Nd"], max_codepoint=127), min_size=1, max_size=10)
WORD = st.sampled_from(
    [t for t in LOOKS_LIKE_SOMETHING_ELSE if t.isascii() and not set(t) & set(",:=[]{}()'\"\\#&!*<>~ ")]
) | _WORDS.filter(lambda word: word.lower() != "null")  # which means none


def test_a_list_takes_any_letters() -> None:
    assert parse_override("env.tasks=[jürgen, a=b]") == ("env.tasks", ["jürgen", "a=b"])
    assert parse_override("env.tasks=[]") == ("env.tasks", [])
    assert parse_override("env.tasks=['a, b',007]") == ("env.tasks", ["a, b", "007"])


@settings(deadline=None, max_examples=100)
@given(st.lists(WORD, min_size=1, max_size=4))
def test_texts_of_a_list_and_of_a_mapping_too(words: list[str]) -> None:
    assert parse_override(f"env.tasks=[{', '.join(words)}]") == ("env.tasks", words)
    (typed, *_) = as_typed(f"env={{tasks:[{','.join(words)}],args:{{run:{words[0]}}}}}", TEXTS)
    assert parse_override(typed) == ("env.tasks", words)


@settings(deadline=None, max_examples=10)  # each composes a whole configuration
@given(WORD)
def test_an_option_of_a_world_takes_any_text(word: str) -> None:
    assert load_config(["env=miniwob", f"env.args={{browser_path:{word}}}"]).env.args == {"browser_path": word}


@pytest.mark.parametrize(
    ("override", "key", "wanted"),
    [
        ("run_name=20240101_120000", "run_name", "20240101_120000"),
        ("run_name='4e12'", "run_name", "4e12"),
        ("run_name=null", "run_name", None),
        ("run_name='null'", "run_name", "null"),
        ("run_name=${seed}", "run_name", "7"),
        ("output_dir=/home/jürgen/a=b, (c)", "output_dir", "/home/jürgen/a=b, (c)"),
        ("output_dir='/home/jürgen/a=b, (c)'", "output_dir", "/home/jürgen/a=b, (c)"),
        ("experiment=quick", "experiment", "quick"),
    ],
)
def test_the_composed_configuration_holds_the_text(override: str, key: str, wanted: str | None) -> None:
    assert getattr(load_config([override, "seed=7"]), key) == wanted


def test_a_list_of_one_is_still_asked_for_as_a_list() -> None:
    with pytest.raises(ConfigError, match=r"env\.tasks=word: a list is wanted; write env\.tasks=\[word\]"):
        load_config(["env.tasks=word"])
    with pytest.raises(ConfigError, match=r"one value only; a list is written env\.tasks=\[a,b\]"):
        load_config(["env.tasks=word,battery"])
    with pytest.raises(ConfigError, match=r"optim\.betas=0\.9: a list is wanted; write optim\.betas=\[0\.9\]"):
        load_config(["optim.betas=0.9"])


@pytest.fixture
def preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of `conf/experiment` that the test may write: `experiment=mine`."""
    import shutil

    shutil.copytree(compose.CONF, tmp_path / "conf")
    monkeypatch.setattr(compose, "CONF", tmp_path / "conf")
    return tmp_path / "conf" / "experiment" / "mine.yaml"


@pytest.mark.parametrize("text", ["20240101_120000", "007", "4e12", "0b111", "yes", "12:30"])
def test_a_text_without_quotes_in_a_file_is_refused_where_yaml_reads_something_else(text: str, preset: Path) -> None:
    preset.write_text(f"# @package _global_\nrun_name: '{text}'\nenv:\n  tasks: ['{text}']\n")
    if ":" not in text:  # no name of a directory
        assert load_config(["experiment=mine"]).run_name == text
    preset.write_text(f"# @package _global_\noutput_dir: {text}\n")
    try:
        assert load_config(["experiment=mine"]).output_dir == text
    except ConfigError as error:
        assert str(error).endswith("text is wanted, and a number was read; write it in quotes")
    preset.write_text(f"# @package _global_\nenv:\n  tasks: [{text}]\n")
    try:
        assert load_config(["experiment=mine"]).env.tasks == (text,)
    except ConfigError as error:
        assert "write it in quotes" in str(error)


@settings(deadline=None, max_examples=100)
@given(TEXT)
def test_a_saved_configuration_is_read_back_with_the_same_texts(text: str) -> None:
    assume("${" not in text and text.isprintable() and text != "???")
    config = from_mapping({"output_dir": text, "env": {"tasks": [text]}})
    saved: Any = OmegaConf.to_container(OmegaConf.create(to_yaml(masked_config(config))))
    assert from_mapping(saved) == config


@pytest.mark.parametrize("text", ["20240101_120000", "007", "yes"])
def test_a_converted_env_file_keeps_texts(text: str, preset: Path) -> None:
    preset.write_text(render(convert({"OUTPUT_DIR": text}), "old.env"), encoding="utf-8")
    assert load_config(["experiment=mine"]).output_dir == text
