"""K-Means maps: clusters that exist are recovered, whatever the start."""

import cv2
import numpy as np
import pytest

from clipself_seg.visualization.dense_maps import (
    borders,
    colour_segments,
    discard_small_clusters,
    enlarge_labels,
    heat_map,
    kmeans,
    match_labels,
    palette,
)


def three_bands(noise: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 0, 1, 1, 1, 2], 8).reshape(6, 8)
    features = np.eye(5)[truth].transpose(2, 0, 1) + noise * rng.standard_normal((5, 6, 8))
    return features / np.linalg.norm(features, axis=0), truth


@pytest.mark.parametrize("seed", range(5))
def test_separate_clusters_are_found_from_any_start(seed):
    features, truth = three_bands(noise=0.05)
    assert (match_labels(kmeans(features, 3, seed), truth) == truth).all()
    noisy, _ = three_bands(noise=1.0)
    assert (kmeans(noisy, 4, seed) == kmeans(noisy, 4, seed)).all()


def test_every_cluster_has_a_location_even_among_equal_features():
    labels = kmeans(np.ones((4, 3, 3)) / 2, clusters=4)
    assert set(labels.ravel()) == {0, 1, 2, 3}


def test_an_image_of_one_cell_is_one_cluster():
    assert (kmeans(np.ones((4, 1, 1)) / 2, clusters=1) == np.zeros((1, 1))).all()


def test_small_clusters_go_to_the_nearest_large_one():
    features, truth = three_bands(noise=0.0)
    strange = np.where(truth == 2, 3, truth)
    strange[2, 3] = 2  # one cell of the second band is a cluster of its own
    # Numbers stay in their order, without the gap that 2 would leave.
    assert (discard_small_clusters(strange, features, fraction=0.05) == truth).all()
    assert (discard_small_clusters(strange, features, fraction=0.0) == strange).all()
    assert not discard_small_clusters(truth, features, fraction=1.0).any()  # the largest stays


def test_heat_is_dark_below_the_scale_and_bright_above_it():
    image = np.full((2, 2, 3), 100, np.uint8)
    heat = heat_map(image, np.array([[-9.0, 0.0], [1.0, 9.0]]), 0.0, 1.0).astype(int)
    assert (heat[0, 0] == heat[0, 1]).all() and (heat[1, 0] == heat[1, 1]).all()
    assert heat[0].sum() < heat[1].sum() and heat[1, 0, 0] > 200


def test_surplus_clusters_get_numbers_of_their_own():
    labels, reference = np.array([[0, 1, 2]]), np.array([[1, 0, 0]])
    matched = match_labels(labels, reference)
    assert matched[0, 0] == 1 and sorted(matched[0, 1:])[0] == 0 and matched.max() >= 2


def test_enlarging_keeps_areas():
    large = enlarge_labels(np.array([[0, 1], [1, 1]]), 40, 60)
    assert large.shape == (40, 60) and abs((large == 0).mean() - 0.25) < 0.01


def test_colours_differ_and_borders_are_dark():
    assert len({tuple(colour) for colour in palette(40)}) == 40
    lab = cv2.cvtColor(palette(8)[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    assert np.abs(np.diff(lab[:, 0])).min() > 5
    labels = np.array([[0, 0, 1]])
    assert borders(labels).tolist() == [[False, True, False]]
    assert colour_segments(labels)[0, 1].sum() < colour_segments(labels)[0, 0].sum()
