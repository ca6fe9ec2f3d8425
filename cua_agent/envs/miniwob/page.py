"""The size of a MiniWoB++ page."""

WIDTH, HEIGHT = SIZE = 160, 210
"""In CSS pixels."""
