"""Masks over frames: what is painted, and that all else stays."""

import numpy as np

from combo.pipeline.painting import COLOURS, paint


def test_an_object_is_tinted_and_bordered_and_the_rest_of_the_frame_stays() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    label = np.zeros((20, 30), np.uint8)
    label[5:15, 10:20] = 3
    before = frame.copy()
    painted = paint(frame, label)
    assert (frame == before).all()
    assert (painted[label == 0] == frame[label == 0]).all()
    assert (painted[5, 10:20] == 255).all()
    assert (painted[5:15, 19] == 255).all()
    inside = painted[6:14, 11:19].astype(int)
    wanted = (frame[6:14, 11:19].astype(int) + COLOURS[3].astype(int)) / 2
    assert np.abs(inside - wanted).max() <= 1


def test_a_clip_of_one_object_is_painted_like_its_frames_one_by_one() -> None:
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (3, 8, 9, 3), np.uint8)
    masks = rng.random((3, 8, 9)) < 0.5
    assert (paint(frames, masks) == np.stack(list(map(paint, frames, masks)))).all()


def test_classes_have_the_colours_that_avsbench_gives_them() -> None:
    assert COLOURS[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert COLOURS[[15, 16, 20]].tolist() == [[192, 128, 128], [0, 64, 0], [0, 64, 128]]
    assert len(np.unique(COLOURS, axis=0)) == 256
