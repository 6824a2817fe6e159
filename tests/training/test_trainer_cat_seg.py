"""CAT-Seg in the training loop: several processes, accumulation, and half precision."""

import torch
from detectron2.modeling import build_model

from clipself_seg.checkpoints.training_state import trained_parameters
from clipself_seg.config import load_config
from tests.conftest import ROOT
from tests.training.test_trainer_data_parallel import gradients, train_model, worst
from tests.two_processes import in_two_processes

HEAD = "MODEL.SEM_SEG_HEAD."
SMALL = ("MODEL.CLIP.WEIGHTS", "", f"{HEAD}FEATURE_RESOLUTION", "[8, 8]", "SOLVER.MAX_ITER", "4")
SMALL += (f"{HEAD}WINDOW_SIZES", "4", "MODEL.CAT_SEG.PAD_LEN", "6", "SOLVER.WARMUP_ITERS", "1")
SMALL += ("SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.IMS_PER_BATCH", "4")


def configuration(*opts):
    return load_config(ROOT / "configs/mini/semseg_original.yaml", [*SMALL, *map(str, opts)])


def model_of(cfg):
    torch.manual_seed(0)
    model = build_model(cfg).train()
    model.set_vocabulary(["cat", "dog", "sky"])
    return model


def mapper(record, draw):
    generator = torch.Generator().manual_seed(100 * draw + record["image_id"])
    return {
        **record,
        "image": torch.randint(256, (3, 64, 64), dtype=torch.uint8, generator=generator),
        "sem_seg": torch.randint(3, (64, 64), generator=generator),
    }


RECORDS = [{"file_name": f"{index}.jpg", "image_id": index} for index in range(8)]
SAMPLES = [mapper(record, 0) for record in RECORDS[:4]]


def train(folder, *opts, resume=False):
    cfg = configuration("OUTPUT_DIR", folder, *opts)
    model = model_of(cfg)
    train_model(model, cfg, RECORDS, mapper, resume)
    return {name: p.detach().clone() for name, p in trained_parameters(model).items()}


def test_two_processes_without_unused_parameters_have_the_gradients_of_one(tmp_path):
    # Both processes have images, and one of them fewer pixels with a class.
    ignored = [sample | {"sem_seg": sample["sem_seg"].clone()} for sample in SAMPLES]
    ignored[0]["sem_seg"][:48] = ignored[1]["sem_seg"][:20] = 255

    def work(rank, folder):
        return gradients(model_of(configuration()), ignored[2 * rank : 2 * rank + 2])

    first, second = in_two_processes(work, tmp_path)
    whole = gradients(model_of(configuration()), ignored)
    used = {name: value for name, value in whole.items() if value.abs().max() > 1e-7}
    assert all(torch.equal(first[name], second[name]) for name in whole)
    assert worst({name: first[name] for name in used}, used) < 1e-3


def test_accumulated_passes_are_one_step(tmp_path):
    whole = train(tmp_path / "whole", "SOLVER.MAX_ITER", 1)
    parts = train(tmp_path / "parts", "SOLVER.MAX_ITER", 1, "SOLVER.ACCUMULATE", 4)
    moved = model_of(configuration())
    before = dict(trained_parameters(moved))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=2e-5, rtol=1e-3)
    assert any(not torch.equal(whole[name], before[name]) for name in whole)


def test_half_precision_changes_the_loss_little_and_no_gradient_is_lost():
    plain = model_of(configuration())(SAMPLES)["loss_sem_seg"].item()
    half = model_of(configuration("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "bfloat16"))
    loss = half(SAMPLES)["loss_sem_seg"]
    loss.backward()
    assert abs(loss.item() - plain) < 0.01 * plain
    assert all(p.grad.isfinite().all() for p in trained_parameters(half).values())
