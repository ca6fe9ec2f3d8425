"""Rewrites docs/configuration.md from the configuration's dataclasses and `conf/`."""

from __future__ import annotations

from pathlib import Path

from trainers.config.compose import GROUPS, choices
from trainers.config.reference import markdown

TARGET = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
INTRODUCTION = """\
# Configuration

<!-- Made by scripts/make_config_docs.py (make docs); edit trainers/config instead. -->

A run is configured with `key=value` on the command line:

    python train.py experiment=pocket rollout.group_size=16 seed=1
    python train.py model=/models/my-checkpoint max_steps=100
    python train.py 'env.args.latency={kind:lognormal,mean_s:0.5}'

The grammar is [Hydra's](https://hydra.cc/docs/advanced/override_grammar/basic/). A list is written `[a,b]`, nothing is
`null`. A key whose value is text keeps what was typed: `run_name=20240101_120000` stays a name, and a path may hold any
character; `'null'` in quotes is the word. In a YAML file such texts need quotes. Keys are strict: an unknown
key or an illegal value ends the command with one line on standard error and exit status 2, before a model is loaded.
`python train.py --config key=value ...` prints the whole configuration of a run without running it; a run keeps it in
its `config.yaml`, secrets masked.

A default below is what `python train.py` uses, its presets included (`backend=areal`, `env=pocket`); where the backends
differ, `legacy: ...` follows. Other presets set other values: `--config` shows them.

## Presets

A preset is a file of `conf/<group>/` that sets several keys at once. Presets apply in the order of this table, so an
experiment may set any key, and the command line has the last word.

| group | presets |
| --- | --- |
"""

ELSEWHERE = """
`model=` also takes a directory or a hub id: `model=Qwen/Qwen3-VL-4B-Instruct` sets `model.path`. `env=` also takes a
[world of your own](environments.md#a-world-of-your-own).

Presets may come from elsewhere. `--config-dir <directory>` adds those of a directory that is laid out like `conf/`:
its `experiment/mine.yaml` is `experiment=mine`, and may build on presets of ours as these do on each other. A package
brings its own with an entry point of the group `cua_grpo.presets` whose value is the package that holds the files. A
name that is taken is refused. `compare.py` has the option as well; a resumed run does not need it.

`-m` runs every combination of several values, one run after the other: `python train.py -m seed=1,2,3
optim.learning_rate=1e-4,2e-4`. All are checked before the first one begins. The runs lie in a directory of their own,
`outputs/sweep-<time>/`, named after what differs.

"""


def render() -> str:
    """The whole document."""
    rows = "".join(f"| `{group}` | {', '.join(f'`{name}`' for name in choices(group))} |\n" for group in GROUPS)
    return INTRODUCTION + rows + ELSEWHERE + markdown()


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
    print(f"wrote {TARGET}")
