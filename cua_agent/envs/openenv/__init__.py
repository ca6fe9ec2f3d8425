"""Environments behind an OpenEnv server, through its official client (`openenv`, which is imported nowhere else)."""
