"""Any gymnasium environment that renders RGB, played with keys and taps."""
