"""What an update does with what is unusual, the same on every side: long rows, bad values, bad batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.policy_rows import row
from tests.sides_rig import batch, cut, one_group, opened_side, side_config
from tests.tiny_random import build
from trainers.parity.replay import SIDES, Opened

pytest.importorskip("areal")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module", params=SIDES)
def side(request: pytest.FixtureRequest, model: Path) -> Iterator[Opened]:
    with opened_side(side_config(model), request.param) as opened:
        yield opened


def test_a_row_of_the_largest_length_is_trained_with_the_default_keys(side: Opened, model: Path) -> None:
    longest = side_config(model).model.max_length
    assert longest > side_config(model).areal.packed_tokens
    policy = side.components.policy
    long = cut(row(policy, 9, [(64, 64, 40)] * 60), longest)
    shown = int((long.input_ids == policy.special.image_token_id).sum()) // policy.image_tokens(64, 64)
    rows = [*one_group(side), replace(long, reward=3.0, images=long.images[:shown])]
    record = side.trainer.update(batch(rows))
    assert len(long) == longest
    assert not record.skipped
    assert record.metrics["tokens"] == sum(row.loss_mask.sum() for row in rows)
