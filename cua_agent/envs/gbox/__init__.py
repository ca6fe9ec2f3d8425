"""GBox boxes (Android and Linux, in the cloud or local) through the official SDK; the only place that imports it.

`python -m cua_agent.envs.gbox reap` ends boxes that a killed run left behind.
"""
