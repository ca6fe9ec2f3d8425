"""Behaviour cloning: what `python -m trainers.clone` and `scripts/build_tiny_model.py` train with."""
