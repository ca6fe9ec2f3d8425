"""``python -m trainers.areal.export [key=value ...] [--out file.yaml]``: a configuration as AReaL's own YAML.

The file is for `areal.api.cli_args.load_expr_config`, that is for a script that uses AReaL without this package's
trainer: ``python their_train.py --config file.yaml``. What AReaL does otherwise is listed in its first lines.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from cua_agent.secrets import masked_output
from trainers.areal.process import EXTRA, quiet
from trainers.config import ConfigError, TrainConfig
from trainers.config.compose import load_config

DONE, BAD_CONFIGURATION = 0, 2


def render(config: TrainConfig) -> str:
    """The YAML of `config`. Raises `ConfigError` for what AReaL's trainer does not compute."""
    if importlib.util.find_spec("areal") is None:
        raise ConfigError(EXTRA)
    quiet()
    from trainers.areal.config.native_yaml import caveats, native_config, to_yaml
    from trainers.areal.train.phase3_trainer import check_supported

    check_supported(config)
    directory = Path(config.output_dir) / (config.run_name or f"{config.experiment}-seed{config.seed}")
    comments = [
        "# For areal 1.0.4, made by trainers.areal.export: what differs from AReaL's defaults.",
        *(f"# - {line}" for line in caveats(config)),
    ]
    return "\n".join([*comments, to_yaml(native_config(config, directory))])


@masked_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m trainers.areal.export", description=__doc__.partition("\n")[0])
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for train.py")
    parser.add_argument("--out", type=Path, help="file to write; standard output without it")
    options = parser.parse_intermixed_args(arguments)
    try:
        text = render(load_config(["backend=areal", *options.overrides]))
        if options.out is None:
            print(text, end="")
        else:
            options.out.write_text(text, encoding="utf-8")
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_CONFIGURATION
    return DONE


if __name__ == "__main__":
    sys.exit(main())
