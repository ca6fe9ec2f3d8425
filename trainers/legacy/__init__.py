"""The synchronous backend."""
