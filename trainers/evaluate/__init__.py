"""The command `python -m trainers.evaluate`: what a checkpoint can do, and whether another one can do more."""
