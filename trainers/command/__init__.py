"""The command `train.py`: from what was typed to a run that is trained, interrupted or refused."""
