"""Worlds that an agent can act in, behind one protocol (`cua_agent.envs.base.Environment`)."""
