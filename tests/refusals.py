"""What a configuration that cannot run is answered with."""

import pytest

from trainers.config import ConfigError
from trainers.config.compose import load_config


def refusal(*overrides: str) -> str:
    """The message of the refusal: one short line."""
    with pytest.raises(ConfigError) as caught:
        load_config(overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) <= 400
    return message
