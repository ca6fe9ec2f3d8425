"""How the commands end."""

DONE, FAILED, BAD_CONFIGURATION, INTERRUPTED = 0, 1, 2, 130
"""What the process's exit status means, for every command of the two packages."""
