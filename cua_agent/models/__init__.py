"""Policies: loaders, adapters, exports, and the built-in model."""
