"""What only a GPU shows: `make test-gpu`, on a machine that has one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from cua_agent.models import packed_attention
from cua_agent.models.fast_norms import use_fast_norms
from cua_agent.models.loaders import load_policy
from cua_agent.models.lora import LoraSpec
from cua_agent.models.packed_attention import attend_within, packed_rows
from tests.policy_rows import ragged_batch, row
from tests.tiny_random import build
from trainers.components import build_policy
from trainers.config import ArealConfig, LoaderConfig, LoraConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from trainers.grpo.batching import micro_batches
from trainers.grpo.forward import score_tokens
from trainers.grpo.learner import PolicyLearner
from trainers.protocol import Batch
from trainers.run.gpu_meter import GpuMeter

ROOT = Path(__file__).resolve().parents[1]
CARDS = torch.cuda.device_count()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not CARDS, reason="needs a CUDA device")]

SHORT = [
    "max_steps=2",
    "rollout.groups_per_step=2",
    "rollout.group_size=4",
    "rollout.max_refills=0",
    "eval.baseline=false",
    "eval.every_steps=0",
    "eval.episodes=4",
    "logging.tensorboard=false",
]
DEVICES = ["cuda", pytest.param("cuda:1", marks=pytest.mark.skipif(CARDS < 2, reason="needs two CUDA devices"))]


@pytest.fixture(autouse=True)
def first_card() -> None:
    """An engine of AReaL's makes its card the process's own, and leaves it so."""
    torch.cuda.set_device(0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny") / "model")


@pytest.mark.parametrize("phase", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_process_trains(phase: int, dtype: str, tmp_path: Path) -> None:
    keys = ["backend=areal", f"phase={phase}", "loader.device=cuda", "lora.enabled=true", f"model.dtype={dtype}"]
    command = [sys.executable, str(ROOT / "train.py"), *SHORT, *keys, f"output_dir={tmp_path}", "run_name=run"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2]


@pytest.mark.parametrize("device", DEVICES)
def test_phase_2_computes_on_the_device_what_plain_torch_computes(weights: Path, device: str, tmp_path: Path) -> None:
    from trainers.areal.process import prepare_process
    from trainers.areal.train.phase2_learner import Phase2Learner

    torch.backends.cudnn.allow_tf32 = False
    prepare_process(tmp_path, device)
    config = TrainConfig(
        backend="areal",
        phase=2,
        loader=LoaderConfig(device=device),
        model=ModelConfig(path=str(weights)),
        lora=LoraConfig(enabled=True, r=4),
        loss=LossConfig(kl_coefficient=0.1),
        optim=OptimConfig(learning_rate=1e-3),
    )
    ours = PolicyLearner(build_policy(config), config)
    with closing(Phase2Learner(build_policy(config), config)) as theirs:
        batch = ragged_batch(ours._policy)
        for _ in range(3):
            ours.update(batch), theirs.update(batch)
        a, b = ours.loss_and_gradients(batch), theirs.loss_and_gradients(batch)
        assert b.metrics["loss"] == pytest.approx(a.metrics["loss"], rel=1e-4, abs=1e-5)
        for name, parameter in theirs._policy.trainable_parameters():
            assert parameter.device == torch.device(device if ":" in device else f"{device}:0")
            torch.testing.assert_close(b.gradients[name], a.gradients[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_rows_score_as_eager_attention_scores_them(weights: Path, dtype: str) -> None:
    scores = []
    for attention in ("sdpa", "eager"):
        policy = load_policy(
            str(weights), device="cuda", dtype=dtype, attn_implementation=attention, lora=LoraSpec(r=4)
        )
        [micro] = micro_batches(policy, ragged_batch(policy), LossConfig(), 1 << 20)
        micro = micro.to("cuda")
        with torch.no_grad():
            scores.append(score_tokens(policy, micro, 1.0).logprobs)
    tolerance = 1e-4 if dtype == "float32" else 0.1
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=tolerance)


def test_micro_batches_reach_the_card_as_they_were_collated(weights: Path) -> None:
    work = torch.randn(4096, 4096, device="cuda")
    rows = []
    for device in ("cpu", "cuda"):
        policy = load_policy(str(weights), device=device)
        micros = []
        for micro in micro_batches(policy, ragged_batch(policy), LossConfig(), 150):
            assert micro.input_ids.device.type == device
            work = (work @ work).clamp_(-1, 1)  # while this goes on the next one is copied
            micros.append(micro.to("cpu"))
        rows.append(micros)
    assert len(rows[0]) == len(rows[1]) > 1
    for ours, wanted in zip(rows[1], rows[0], strict=True):
        for field in fields(wanted):
            torch.testing.assert_close(getattr(ours, field.name), getattr(wanted, field.name), rtol=0, atol=0)


@pytest.mark.parametrize(("heads", "key_heads", "width"), [(16, 8, 128), (4, 4, 64), (4, 2, 72)])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
def test_one_kernel_attends_within_every_row(heads: int, key_heads: int, width: int, causal: bool) -> None:
    lengths = [300, 1, 257, 64, 64]
    places = packed_rows(lengths, torch.device("cuda"))
    torch.manual_seed(0)
    exact = [
        torch.randn(1, n, sum(lengths), width, device="cuda", requires_grad=True) for n in (heads, key_heads, key_heads)
    ]
    half = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    assert packed_attention._varlen_kernel(half[0]) is not None and packed_attention._varlen_kernel(exact[0]) is None
    results = []
    for rows in (exact, half):
        attended = attend_within(
            *rows, places["cu_seq_lens_q"], places["max_length_q"], causal=causal, scaling=width**-0.5
        )
        results.append([attended, *torch.autograd.grad(attended.float().square().sum(), rows)])
    for ours, wanted in zip(results[1], results[0], strict=True):
        assert ours.dtype == torch.bfloat16
        assert float((ours.float() - wanted).norm() / wanted.norm()) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_in_one_kernel_is_the_norm_in_six(dtype: torch.dtype) -> None:
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm

    norm = Qwen3VLTextRMSNorm(128).to("cuda", dtype)
    torch.nn.init.normal_(norm.weight)
    hidden = torch.randn(2, 50, 4, 128, device="cuda", dtype=dtype)
    stock = norm(hidden)
    use_fast_norms(torch.nn.Sequential(norm))
    torch.testing.assert_close(norm(hidden), stock)


@pytest.mark.parametrize("offloaded", [False, True])
def test_compiled_layers_compute_what_plain_ones_compute(
    weights: Path, offloaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "0")
    gradients = []
    for compiled in (False, True):
        policy = load_policy(
            str(weights),
            device="cuda",
            lora=LoraSpec(r=4),
            compiled=compiled,
            gradient_checkpointing=True,
            offload_activations=offloaded,
        )
        generator = torch.Generator().manual_seed(0)
        for _, parameter in policy.trainable_parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).cuda()
        policy.model.train()
        for budget in (1 << 20, 150):  # other lengths, the same code
            for micro in micro_batches(policy, ragged_batch(policy), LossConfig(), budget):
                score_tokens(policy, micro.to("cuda"), 1.0).logprobs.sum().backward()
        gradients.append({name: parameter.grad for name, parameter in policy.trainable_parameters()})
    for name, wanted in gradients[0].items():
        assert wanted is not None and gradients[1][name] is not None
        assert float((gradients[1][name] - wanted).norm() / wanted.norm()) < 1e-3, name


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("phase", [1, 2])
def test_layer_inputs_in_main_memory_leave_the_card_and_change_nothing(phase: int, lora: bool, tmp_path: Path) -> None:
    from trainers.areal.process import prepare_process
    from trainers.areal.train.phase2_learner import Phase2Learner

    prepare_process(tmp_path, "cuda")
    layers, width = 12, 128
    config = TrainConfig(
        backend="areal",
        phase=phase,  # type: ignore[arg-type]
        model=ModelConfig(path=str(build(tmp_path / "model", hidden=width, layers=layers))),
        lora=LoraConfig(enabled=lora, r=4),
        optim=OptimConfig(micro_batch_tokens=1 << 15),
        areal=ArealConfig(packed_tokens=1 << 15),
    )
    records, peaks = [], []
    for offloaded in (False, True):
        loader = LoaderConfig(device="cuda", gradient_checkpointing=True, offload_activations=offloaded)
        policy = build_policy(replace(config, loader=loader))
        rows = [row(policy, seed, [(64, 64, 8), (0, 0, 900 + seed)]) for seed in range(16)]
        with closing((PolicyLearner if phase == 1 else Phase2Learner)(policy, config)) as learner:
            for _ in range(2):  # the second finds what the first one allocated
                held = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                record = learner.loss_and_gradients(Batch(rows, [1.0, -0.5] * 8))
            peaks.append(torch.cuda.max_memory_allocated() - held)
            records.append(record)
        del learner, policy
    plain, other = records
    assert other.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=1e-6, abs=1e-7)
    for name, wanted in plain.gradients.items():
        assert float((other.gradients[name] - wanted).norm()) <= 1e-5 * float(wanted.norm()), name
    saved = (layers - 2) * sum(map(len, rows)) * width * 4
    assert peaks[0] - peaks[1] == pytest.approx(saved, rel=0.2)


@pytest.mark.parametrize("offloaded", [False, True])
@pytest.mark.parametrize("learner", ["legacy", "phase2"])
def test_no_micro_batch_waits_for_the_one_before(learner: str, offloaded: bool, weights: Path, tmp_path: Path) -> None:
    """More micro-batches, but no more questions that the CPU has to wait for the GPU with."""
    from trainers.areal.process import prepare_process
    from trainers.areal.train.phase2_learner import Phase2Learner

    prepare_process(tmp_path, "cuda")
    asked = []
    for budget in (1 << 20, 150):
        config = TrainConfig(
            backend="legacy" if learner == "legacy" else "areal",
            phase=2,
            loader=LoaderConfig(device="cuda", gradient_checkpointing=offloaded, offload_activations=offloaded),
            model=ModelConfig(path=str(weights), dtype="bfloat16"),
            lora=LoraConfig(enabled=True, r=4),
            optim=OptimConfig(micro_batch_tokens=budget),
            areal=ArealConfig(packed_tokens=budget),
        )
        with closing((PolicyLearner if learner == "legacy" else Phase2Learner)(build_policy(config), config)) as ours:
            batch = ragged_batch(ours._policy)
            ours.update(batch)
            asked.append(synchronisations(lambda ours=ours, batch=batch: ours.update(batch)))
    assert len(asked[0]) == len(asked[1]), "\n".join(asked[1])


ONCE = ("areal/utils/data.py", torch.cuda.__file__)
"""AReaL copies all micro-batches to the device before the first; the meter begins."""


def synchronisations(work: Callable[[], object]) -> list[str]:
    """Where the CPU waits for the GPU in `work`, `ONCE` left out; threads that prepare do not count."""
    asked: list[str] = []

    def note(message: Warning | str, _category: object, file: str, line: int, *_: object) -> None:
        beside = threading.current_thread().name.startswith("ThreadPoolExecutor")  # prepares the next micro-batch
        if not beside and not file.endswith(ONCE) and "synchronizing" in str(message):
            asked.append(f"{file}:{line}")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return asked


def test_the_meter_sees_when_the_gpu_has_nothing_to_do() -> None:
    meter = GpuMeter()
    held = torch.zeros(1 << 20, device="cuda")
    matrix = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    meter.start()
    time.sleep(0.5)
    idle = meter.stop()
    meter.start()
    for _ in range(100):
        matrix = (matrix @ matrix).clamp_(-1, 1)
    torch.cuda.synchronize()
    busy = meter.stop()
    assert idle.wait_s > 0.4 and idle.peak_gib >= held.nbytes / 2**30
    assert busy.wait_s < 0.3
