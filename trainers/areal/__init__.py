"""The asynchronous backend, on AReaL 1.0.4; the only place that imports areal."""
