"""Behaviour cloning: how the built-in tiny model is made (`scripts/build_tiny_model.py`)."""
