"""Computer-use agents and their worlds; importing it registers the tasks of every world."""

from cua_agent.envs import registry as _registry  # noqa: F401 - worlds hand their tasks in
