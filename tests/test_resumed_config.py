"""A resumed run starts from the configuration that its parent saved, the command line on top."""

import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tests.refusals import refusal
from trainers.config.compose import compose_run, load_config
from trainers.config.overrides import typed_text
from trainers.run.directory import create_run_directory

pytestmark = pytest.mark.slow


def saved_run(output_dir: Path, *overrides: str, name: str = "former") -> str:
    """The directory of a run that was started with `overrides`."""
    composition = compose_run([*overrides, typed_text("output_dir", str(output_dir)), f"run_name={name}"])
    return str(create_run_directory(composition.config, presets=composition.presets))


def change(directory: str, **keys: object) -> None:
    """Change top-level keys of a run's `config.yaml`; None takes one away."""
    file = Path(directory) / "config.yaml"
    tree = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(tree, dict)
    tree = {key: value for key, value in {**tree, **keys}.items() if value is not None}
    file.write_text(OmegaConf.to_yaml(OmegaConf.create(tree)))


def test_without_other_keys_it_is_the_run_it_was(tmp_path: Path) -> None:
    started = ["experiment=pocket_lora", "env.tasks=[word]", "optim.betas=[0.8,0.9]", "seed=3", "max_minutes=1.5"]
    former = saved_run(tmp_path, *started)
    found = compose_run([f"resume={former}"])
    wanted = load_config([*started, f"output_dir={tmp_path}", f"resume={former}"])
    assert (found.config, found.changes, found.notes) == (wanted, (), ())


def test_what_is_typed_comes_on_top_and_every_difference_is_told(tmp_path: Path) -> None:
    former = saved_run(tmp_path, "optim.learning_rate=2e-4", "env.tasks=[word]")
    found = compose_run([f"resume={former}", "optim.learning_rate=1e-6", "env.tasks=[alarm,word]", "run_name=new"])
    assert found.changes == ('env.tasks: ["word"] -> ["alarm", "word"]', "optim.learning_rate: 0.0002 -> 1e-06")
    assert (found.config.optim.learning_rate, found.config.run_name) == (1e-6, "new")


def test_a_checkpoint_in_a_run_directory_leads_to_the_same_configuration(tmp_path: Path) -> None:
    former = Path(saved_run(tmp_path, "seed=5"))
    (former / "checkpoints" / "best").mkdir(parents=True)
    config = load_config([f"resume={former}/checkpoints/best"])
    assert (config.seed, config.resume) == (5, f"{former}/checkpoints/best")


@pytest.mark.parametrize("name", ["a b", "a=b,(c", "jürgen's", "${seed}", 'q"q\\', "auto"])
def test_a_run_of_any_name_is_found(tmp_path: Path, name: str) -> None:
    former = Path(saved_run(tmp_path, "seed=5"))
    odd = former.rename(tmp_path / name)
    config = load_config([typed_text("resume", str(odd))])
    assert (config.seed, config.resume) == (5, str(odd))


def test_the_path_may_come_from_a_variable(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("FORMER", saved_run(tmp_path, "seed=5"))
    assert load_config(["resume=${oc.env:FORMER}"]).seed == 5
    assert refusal("resume=${oc.env:NO_SUCH_VARIABLE}").startswith("resume=${oc.env:NO_SUCH_VARIABLE}: ")


def test_a_checkpoint_on_its_own_takes_every_key_from_the_command_line(tmp_path: Path) -> None:
    found = compose_run([f"resume={tmp_path}", "seed=4"])
    assert (found.config.seed, found.changes) == (4, ())
    assert f"resume={tmp_path}: no config.yaml there" in found.notes[0]


def test_the_new_run_lies_beside_its_parent_wherever_that_is(tmp_path: Path, monkeypatch) -> None:
    former = Path(saved_run(tmp_path / "outputs"))
    (tmp_path / "moved").mkdir()
    former.rename(tmp_path / "moved" / "former")
    assert load_config([f"resume={tmp_path}/moved/former"]).output_dir == f"{tmp_path}/moved"
    assert load_config([f"resume={tmp_path}/moved/former", "output_dir=/else"]).output_dir == "/else"
    monkeypatch.chdir(tmp_path / "moved" / "former")
    assert load_config(["resume=."]).output_dir == f"{tmp_path}/moved"


def test_keys_that_are_younger_than_the_run_have_their_defaults_and_older_ones_are_named(tmp_path: Path) -> None:
    former = saved_run(tmp_path, "loss.kl_coefficient=0.5")
    change(former, loss={"kl_coefficient": 0.5, "colour": "red"}, eval=None, magic={"wand": 3})
    found = compose_run([f"resume={former}"])
    assert found.config.loss.kl_coefficient == 0.5
    assert found.config.eval == load_config([]).eval
    assert found.notes[0].endswith("left out: loss.colour=red, magic.wand=3")


def test_a_configuration_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    former = saved_run(tmp_path)
    (Path(former) / "config.yaml").write_text("a: [")
    assert "config.yaml cannot be read" in refusal(f"resume={former}")
    (Path(former) / "config.yaml").write_text("- a")
    assert "holds no keys" in refusal(f"resume={former}")


# Presets.


def test_an_experiment_that_is_typed_acts_as_a_change(tmp_path: Path) -> None:
    former = saved_run(tmp_path, "experiment=pocket", "optim.learning_rate=3e-5", "max_steps=7", "lora.enabled=true")
    found = compose_run([f"resume={former}", "experiment=pocket_lora"])
    assert found.changes == ("experiment: pocket -> pocket_lora", "optim.learning_rate: 3e-05 -> 0.001")
    assert found.config.max_steps == 7
    assert found.presets["experiment"] == "pocket_lora"


def test_a_preset_that_the_run_is_made_of_changes_nothing(tmp_path: Path) -> None:
    former = saved_run(tmp_path, "experiment=quick", "max_steps=9", "env.tasks=[word]")
    assert compose_run([f"resume={former}", "experiment=quick", "env=pocket", "backend=areal"]).changes == ()


def test_another_world_brings_its_own_tasks_and_options(tmp_path: Path) -> None:
    former = saved_run(tmp_path, "env=gbox_local", "env.tasks=[word]", "env.args.pixel_scale=2")
    assert load_config([f"resume={former}", "env=gbox_local"]).env.args["pixel_scale"] == 2
    config = load_config([f"resume={former}", "env=pocket"])
    assert (config.env.name, config.env.args["scale"]) == ("pocket", 1)
    config = load_config([f"resume={former}", "env=gbox"])
    assert (config.env.args["base_url"], config.env.args["reset"]) == (None, "android")


def test_another_backend_brings_its_defaults_and_leaves_what_the_run_had_set_itself(tmp_path: Path) -> None:
    plain = saved_run(tmp_path, "backend=areal")
    assert compose_run([f"resume={plain}", "backend=legacy"]).changes == (
        "backend: areal -> legacy",
        "rollout.max_staleness: 2 -> 0",
        "loss.decoupled: true -> false",
        "optim.learning_rate: 0.00015 -> 0.0002",
    )
    own = saved_run(tmp_path, "backend=legacy", "optim.learning_rate=3e-5")
    found = compose_run([f"resume={own}", "backend=areal", "phase=1"])
    assert (found.config.optim.learning_rate, found.config.rollout.max_staleness) == (3e-5, 2)


def test_a_run_without_a_list_of_its_presets_is_known_by_its_names(tmp_path: Path) -> None:
    former = saved_run(tmp_path, "backend=legacy", "env=miniwob")
    (Path(former) / "run.json").write_text("{}")
    found = compose_run([f"resume={former}", "env=pocket"])
    assert (found.config.backend, found.config.env.name, found.config.env.tasks[0]) == ("legacy", "pocket", "battery")


# Secrets.


def test_a_key_is_found_by_its_reference_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("BOX_TOKEN", "abcdefghijkl")
    typed = "env.args.api_key=${oc.env:BOX_TOKEN}"
    former = saved_run(tmp_path, "env=gbox", typed)
    assert "abcdefghijkl" not in (Path(former) / "config.yaml").read_text()
    for words in ([], [typed]):
        found = compose_run([f"resume={former}", *words])
        assert (found.config.env.args["api_key"], found.changes) == ("${oc.env:BOX_TOKEN}", ())


def test_a_masked_value_without_a_fallback_is_asked_for(tmp_path: Path) -> None:
    former = saved_run(tmp_path, "inference=vllm", "inference.servers=['http://host:1']")
    saved = Path(former) / "config.yaml"
    saved.write_text(saved.read_text().replace("http://host:1", "http://***@host:1"))
    assert refusal(f"resume={former}").startswith('inference.servers=["http://***@host:1"]: ')
    config = load_config([f"resume={former}", "inference.servers=['http://host:2']"])
    assert config.inference.servers == ("http://host:2",)


# Texts.

ODD = ["/home/jürgen/x", "20240101_120000", "4e12", "0b111", "a,b", "a=b", "x(1", "a b", "true", "[a", "it's", '"q']


@pytest.mark.parametrize("text", ODD)
def test_a_text_stays_as_typed(text: str) -> None:
    assert load_config([f"output_dir={text}"]).output_dir == text


def test_a_text_may_refer_to_others(monkeypatch) -> None:
    monkeypatch.setenv("MY_NAME", "h u")
    assert load_config(["output_dir=/jürgen's/${oc.env:MY_NAME}/${seed}"]).output_dir == "/jürgen's/h u/0"


ANY_TEXT = st.text(
    st.sampled_from("\\'\"${}a= ,(") | st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1
)


@settings(deadline=None, max_examples=25)
@given(ANY_TEXT)
def test_any_text_goes_through_a_shell_and_the_override_grammar(text: str) -> None:
    (word,) = shlex.split(shlex.join([typed_text("output_dir", text)]))
    assert load_config([word]).output_dir == text


def test_run_json_lists_the_presets(tmp_path: Path) -> None:
    about = json.loads((Path(saved_run(tmp_path, "experiment=miniwob")) / "run.json").read_text())
    assert (about["presets"]["env"], about["presets"]["experiment"]) == ("miniwob", "miniwob")
