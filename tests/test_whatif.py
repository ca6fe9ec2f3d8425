"""One recorded batch under several losses."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from rich.console import Console

from tests.parity_rig import record_toy, toy_parts
from trainers.config import ConfigError, TrainConfig
from trainers.parity.recording import Recording
from trainers.parity.whatif import config_with, markdown, tables, to_json, what_if


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return record_toy(tmp_path_factory.mktemp("whatif") / "recording")


def test_on_policy_the_losses_have_one_gradient_and_other_weights_of_tokens_another(recording: Recording) -> None:
    changed = ("loss.normalisation=sequence_mean", "advantage.normalise_by_std=false")
    losses = ["grpo", "policy_gradient", "gspo", *(f"grpo+{change}" for change in changed), "gigpo"]
    plain, gradient, by_row, other, undivided, refused = what_if(recording, losses, parts_for=toy_parts)
    assert plain.grad_norm == pytest.approx(gradient.grad_norm, rel=1e-4) and plain.grad_norm > 0
    assert plain.cosines["policy_gradient"] == gradient.cosines["grpo"] == pytest.approx(1, abs=1e-6)
    assert by_row.cosines["grpo"] == pytest.approx(1, abs=1e-6)
    assert other.cosines["grpo"] < 1 - 1e-4
    assert undivided.cosines["grpo"] == pytest.approx(1, abs=1e-6)  # all groups of the toy have the same deviation
    assert undivided.grad_norm < plain.grad_norm
    assert plain.figures["clip_fraction"] == 0 and plain.figures["effective_sample_size"] == 1
    assert "turns are trained, 0 are recorded" in refused.refused and not refused.cosines


def test_what_is_written_can_be_read(recording: Recording) -> None:
    answers = what_if(recording, ["cispo", "sapo"], parts_for=toy_parts)
    read = json.loads(to_json(answers))
    assert [(each["loss"], each["side"], each["refused"]) for each in read] == [
        ("cispo", "legacy", ""),
        ("sapo", "legacy", ""),
    ]
    assert read[0]["cosines"]["sapo"] == answers[0].cosines["sapo"]
    refused = [*answers, replace(answers[0], side="phase3", refused="not here")]
    lines = markdown(refused, "a recording").splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert lines[-1] == "- phase3 refuses cispo: not here"
    console = Console(width=80, record=True)
    for table in tables(refused):
        console.print(table)
    shown = console.export_text()
    assert "…" not in shown and f"{answers[0].cosines['sapo']:.4f}" in shown


def test_a_name_stands_for_keys_and_takes_others() -> None:
    recorded = replace(TrainConfig(), loss=replace(TrainConfig().loss, clip_epsilon_high=0.3, dual_clip=2.0))
    assert config_with(recorded, "gspo+loss.clip_epsilon=0.003").loss == replace(
        recorded.loss, ratio_level="sequence", clip_epsilon=0.003
    )
    assert config_with(recorded, "sapo").loss.clip_epsilon_high is None
    for wrong, why in (
        ("dapo", "losses=dapo: not a loss; allowed: grpo, gspo"),
        ("grpo+optim.learning_rate=1", "no key of a loss; allowed: loss"),
        ("grpo+loss.clip_epsilon=2", "clip_epsilon"),
        ("grpo+loss.clip=2", "loss.clip"),
    ):
        with pytest.raises(ConfigError, match=why):
            config_with(recorded, wrong)


@pytest.mark.slow
def test_phases_come_to_legacys_gradient_or_say_what_they_refuse(recording: Recording) -> None:
    pytest.importorskip("areal")
    answers = what_if(recording, ["grpo", "cispo"], ["phase1", "phase2", "phase3"], toy_parts)
    of_phases = {(answer.side, answer.loss): answer for answer in answers if answer.side != "legacy"}
    refused = of_phases.pop(("phase3", "cispo"))
    assert "loss.kind=cispo" in refused.refused
    assert all(answer.off is not None and answer.off < 1e-5 for answer in of_phases.values())
    assert all(not answer.refused for answer in of_phases.values()) and len(of_phases) == 5
