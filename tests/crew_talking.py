"""Run by torchrun with three processes: prints what each one learns from the others."""

from __future__ import annotations

import signal
from collections.abc import Callable

from trainers.areal.crew import ProcessCrew
from trainers.config import TrainConfig
from trainers.crew import crew_of_environment


class UnsendableError(RuntimeError):
    def __init__(self, what: Callable[[], str]) -> None:
        super().__init__(what())
        self.what = what


def failing(crew: ProcessCrew, which: int, error: BaseException) -> Callable[[], int]:
    def work() -> int:
        if crew.rank == which:
            raise error
        return crew.rank

    return work


def outcome(crew: ProcessCrew, work: Callable[[], object]) -> str:
    try:
        crew.do(work)
    except BaseException as error:
        return f"{type(error).__name__}({error}) together={crew.failed_together(error)}"
    return "fine"


def interrupted(crew: ProcessCrew) -> Callable[[], None]:
    report = crew.interruptible(lambda *_: None)

    def work() -> None:
        if crew.rank == 2:
            signal.raise_signal(signal.SIGINT)
        report(1, 2)

    return work


def main() -> None:
    with crew_of_environment(TrainConfig(backend="areal", phase=2, rollout=_rollout())) as crew:
        assert isinstance(crew, ProcessCrew)
        said = [
            crew.gather(10 * crew.rank),
            crew.agree(crew.rank + 5),
            crew.do(lambda: crew.rank * crew.rank),
            outcome(crew, failing(crew, 1, ValueError("one broke"))),
            outcome(crew, failing(crew, 1, UnsendableError(lambda: "secret"))),
            outcome(crew, interrupted(crew)),
            crew.failed_together(ValueError("mine alone")),
        ]
        for rank in range(crew.size):
            crew.gather(None)
            if rank == crew.rank:
                print(rank, said, flush=True)


def _rollout():
    from trainers.config import RolloutConfig

    return RolloutConfig(groups_per_step=3, concurrency=3)


if __name__ == "__main__":
    main()
