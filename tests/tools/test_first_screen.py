"""The first picture of README is what the models that come with the project draw."""

import cv2
import first_screen
import numpy as np


def test_the_picture_of_the_readme_is_reproduced():
    drawn = np.asarray(first_screen.one_scene()).astype(int)
    kept = cv2.imread(str(first_screen.FILE))[..., ::-1].astype(int)
    assert kept.shape == drawn.shape
    # What JPEG loses, and how processors round.
    assert np.abs(drawn - kept).mean() < 3
