"""Train a computer-use agent: python train.py [key=value ...]; --help lists the keys."""

from trainers.command.process import leave
from trainers.command.train import main

if __name__ == "__main__":
    leave(main())
