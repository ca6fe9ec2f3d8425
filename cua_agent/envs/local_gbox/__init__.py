"""A local GBox: the GBox HTTP API with simulated phones behind it, for tests and for training without an account.

``python -m cua_agent.envs.local_gbox`` serves it; `server.running` serves it from inside a test. A phone is put into
the start state of a task by a shell command: ``pocket reset <task id> <seed> [layout] [scale]`` (see `shell`).
"""
