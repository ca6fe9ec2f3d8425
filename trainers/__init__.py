"""Training: backends behind one `Trainer` protocol (`trainers.protocol`), and what they share.

`from trainers import load_config, make_trainer, play` is the way in from Python (docs/api.md).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainers.api import load_config, make_trainer, play

__all__ = ["load_config", "make_trainer", "play"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from trainers import api  # late: every module of this package begins here

    return getattr(api, name)
