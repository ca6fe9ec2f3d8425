"""Run by torchrun with three processes: prints what each one learns from the others."""

from __future__ import annotations

import signal
from collections.abc import Callable

from trainers.config import TrainConfig
from trainers.distributed.torch_process_group import TorchProcessGroup
from trainers.distributed.torchrun import process_group_of_environment


class UnsendableError(RuntimeError):
    def __init__(self, what: Callable[[], str]) -> None:
        super().__init__(what())
        self.what = what


def failing(process_group: TorchProcessGroup, which: int, error: BaseException) -> Callable[[], int]:
    def work() -> int:
        if process_group.rank == which:
            raise error
        return process_group.rank

    return work


def outcome(process_group: TorchProcessGroup, work: Callable[[], object]) -> str:
    try:
        process_group.run_on_all(work)
    except BaseException as error:
        return f"{type(error).__name__}({error}) together={process_group.failed_on_all(error)}"
    return "fine"


def interrupted(process_group: TorchProcessGroup) -> Callable[[], None]:
    report = process_group.interruptible(lambda *_: None)

    def work() -> None:
        if process_group.rank == 2:
            signal.raise_signal(signal.SIGINT)
        report(1, 2)

    return work


def main() -> None:
    with process_group_of_environment(TrainConfig(backend="areal", phase=2, rollout=_rollout())) as process_group:
        assert isinstance(process_group, TorchProcessGroup)
        said = [
            process_group.all_gather(10 * process_group.rank),
            process_group.broadcast(process_group.rank + 5),
            process_group.run_on_all(lambda: process_group.rank * process_group.rank),
            outcome(process_group, failing(process_group, 1, ValueError("one broke"))),
            outcome(process_group, failing(process_group, 1, UnsendableError(lambda: "secret"))),
            outcome(process_group, interrupted(process_group)),
            process_group.failed_on_all(ValueError("mine alone")),
        ]
        for rank in range(process_group.size):
            process_group.all_gather(None)
            if rank == process_group.rank:
                print(rank, said, flush=True)


def _rollout():
    from trainers.config import RolloutConfig

    return RolloutConfig(groups_per_step=3, concurrency=3)


if __name__ == "__main__":
    main()
