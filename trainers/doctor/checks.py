"""All checks of a run, in the order in which they are made: what costs nothing first."""

from __future__ import annotations

from collections.abc import Iterator

from trainers.config import TrainConfig
from trainers.doctor import (
    checkpoints,
    devices,
    keys,
    origin,
    packages,
    plan,
    ports,
    sampling,
    storage,
    worlds,
)
from trainers.doctor.finding import Check
from trainers.doctor.servers import server_checks

_INTACT = "resume=<run directory> takes the newest whole checkpoint; of another policy's, train with its keys"
_WORLD = "docs/environments.md; boxes: end some that are left (python -m cua_agent.envs.gbox reap), or raise the quota"
_SAME_MODEL = "serve the very model of model.path, with its images: python -m cua_agent.inference.vllm serve model=..."


def run_checks(config: TrainConfig) -> list[Check]:
    """The checks of what `config` describes."""
    return [*_before_loading(), *server_checks(config), *_with_the_policy(config)]


def _before_loading() -> Iterator[Check]:
    yield Check("packages", "the code that was tested", packages.versions)
    yield Check("keys", "services, trackers, the hub", keys.keys)
    yield Check("device", "training", devices.devices)
    yield Check("model", "loading, training and serving it", origin.model)
    yield Check("areal", "backend=areal", packages.areal_configuration, ("model",))
    yield Check("memory", "one update", devices.device_memory, ("device", "model"))
    yield Check("host memory", "the processes", devices.host_memory, ("model",))
    yield Check("output", "all that a run leaves", storage.output_directory)
    yield Check("disk", "checkpoints", storage.disk, ("model",))
    yield Check("ports", "servers and process groups", ports.ports)
    yield Check("plan", "full steps without idle boxes", plan.rollout_plan)
    yield Check("resume", "going on with a run", origin.resume, helps=_INTACT)


def _with_the_policy(config: TrainConfig) -> Iterator[Check]:
    servers = tuple(check.name for check in server_checks(config))
    policy = ("device", "model", "memory", *servers)
    yield Check("environment", "rollouts", worlds.environments, ("keys",), _WORLD)
    yield Check("tasks", "rewards", worlds.tasks, ("environment",))
    yield Check("canary", "sampling from the policy", sampling.canary, policy, _SAME_MODEL)
    yield Check("token echo", "training on the tokens that were sampled", sampling.token_echo, ("canary",))
    yield Check("image echo", "looking at the screen", sampling.image_echo, ("canary",))
    yield Check("weights", "learning: new weights are sampled from", sampling.weights_arrive, ("canary",))
    yield Check("episode", "everything together", worlds.episode, ("canary", "tasks"))
    yield Check("checkpoint", "going on later", checkpoints.save_and_load, ("model", "memory", "output", "disk"))
