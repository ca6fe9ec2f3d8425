"""`cua-train` and `python -m trainers.command`: what `train.py` is in a checkout."""

from typing import NoReturn

from trainers.command.process import leave
from trainers.command.train import main


def train() -> NoReturn:
    """The command; ends the process."""
    leave(main())


if __name__ == "__main__":
    train()
