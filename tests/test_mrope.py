from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import tiny_random
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cua_agent.models.loaders import load_policy
from cua_agent.models.mrope import mrope_positions


def test_hand_computed_positions() -> None:
    """Text, a 2 x 3 image, text: the image starts at 2 and the text after it at 2 + max(2, 3)."""
    is_image = np.array([0, 0, 1, 1, 1, 1, 1, 1, 0, 0], dtype=bool)
    assert mrope_positions(is_image, [(2, 3)]).tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]


def test_text_only_rows_count_up() -> None:
    assert mrope_positions(np.zeros(4, dtype=bool), []).tolist() == [[0, 1, 2, 3]] * 3


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_equal_to_the_model_own_rope_index(family: tiny_random.Family) -> None:
    policy = load_policy(str(tiny_random.build(Path(mkdtemp()), family)))
    backbone = policy.base_model.model
    # transformers 5.3 scales the start of a *still image* of Qwen2.5-VL by tokens_per_second as well (its temporal
    # offset within a video is meant, which is 0 for images); at 1 the two agree.
    backbone.config.vision_config.tokens_per_second = 1
    sizes = st.tuples(st.integers(20, 130), st.integers(20, 130))
    segments = st.lists(st.tuples(st.integers(1, 9), sizes), min_size=1, max_size=4)

    @settings(max_examples=20, deadline=None, derandomize=True)
    @given(segments, st.integers(0, 5))
    def check(segments: list[tuple[int, tuple[int, int]]], tail: int) -> None:
        images = [tiny_random.screenshot(*size, seed=0) for _, size in segments]
        ids: list[int] = []
        for text, size in segments:
            ids += [5] * text + [policy.special.image_token_id] * policy.image_tokens(*size)
        ids += [5] * tail
        input_ids = torch.tensor([ids])
        expected, _ = backbone.get_rope_index(
            input_ids,
            mm_token_type_ids=(input_ids == policy.special.image_token_id).int(),
            image_grid_thw=policy.pixels(images)[1],
        )
        assert np.array_equal(policy.positions(ids, images), expected[:, 0].numpy())

    check()


def test_placeholders_and_images_that_do_not_match_are_an_error() -> None:
    with pytest.raises(ValueError, match="5 image placeholders in the row, but its 1 images need 6"):
        mrope_positions(np.ones(5, dtype=bool), [(2, 3)])
    with pytest.raises(ValueError, match="0 image placeholders"):
        mrope_positions(np.zeros(5, dtype=bool), [(2, 3)])
    with pytest.raises(ValueError, match="consecutive"):
        mrope_positions(np.array([1, 0, 1], dtype=bool), [(1, 2)])
