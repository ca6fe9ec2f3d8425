"""What the run starts from: the model as it can be trained, and the checkpoint that it goes on with."""

from __future__ import annotations

from trainers.doctor.context import Context
from trainers.doctor.finding import Finding, ok, warning


def resume(context: Context) -> Finding:
    """The checkpoint that `resume` means: whole by its checksums, and of this policy."""
    from trainers.run.compatibility import check_fits
    from trainers.run.resuming import verified_start

    start = verified_start(context.config)
    if start is None:
        return ok("a new run")
    check_fits(start.checkpoint, context.config)
    said = f"{start.checkpoint}, step {start.state.step}: whole, and of this policy"
    passed_over = [note for note in start.notes if note.startswith("passed over")]
    if passed_over:
        return warning(f"{said}; {'; '.join(passed_over)}", "the steps after it are trained again")
    return ok(said)


def model(context: Context) -> Finding:
    """Whether the model can be trained and served as configured, and holds a first turn; no weights are loaded."""
    from cua_agent.models.sources import find_model
    from trainers.components import check_context, check_model
    from trainers.rollouts.task_sampler import training_tasks

    config = context.config
    check_model(config)
    check_context(config, training_tasks(config.env))
    source = find_model(config.model.path)
    trained = f"LoRA of rank {config.lora.r}" if config.lora.enabled else "all weights"
    return ok(f"model.path={config.model.path} ({source.name}), {config.model.dtype}, {trained} trained")
