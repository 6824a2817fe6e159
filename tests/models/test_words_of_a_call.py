"""Classes that a call is given are those of its result, whatever other threads ask the same model for."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from clipself_seg.config import load_config
from clipself_seg.models.build import build_model
from tests.tiny import tiny_clipself, tiny_samples

NAMES = ("red star", "blue ring", "grass", "sand", "dog", "cat", "sky", "old tree")
CPU = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]


def of_pixels(config):
    """A model of random weights, a photograph, and what is compared of a result."""
    image = torch.randint(256, (3, 40, 60), dtype=torch.uint8)
    model = build_model(load_config(config, [*CPU, "MODEL.CLIP.WEIGHTS", "mini"])).eval()
    return model, {"image": image}, lambda result: result["sem_seg"]


MODELS = {
    "ZeroShotSegmenter": lambda: of_pixels("mini/zero_shot"),
    "CLIPSelf": lambda: (
        tiny_clipself().eval(),
        tiny_samples(1)[0] | {"masks": torch.zeros(len(tiny_samples(1)[0]["boxes"]), 8, 8).bool()},
        lambda result: result["scores"]["boxes"],
    ),
}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_eight_threads_get_their_own_words_and_the_model_keeps_its(name):
    torch.manual_seed(0)
    model, sample, of = MODELS[name]()
    model.set_vocabulary(["what stays"])
    words = [NAMES[: number + 1] for number in range(8)]

    def ask(own):
        return of(model([sample], classes=model.classes_of([*own]))[0])

    serial = [ask(own) for own in words]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(torch.no_grad()(ask), words * 3))
    assert all(map(torch.equal, together, serial * 3))
    assert model.names == (("what stays",),)
    assert not torch.equal(of(model([sample])[0]), serial[-1])
