"""OpenPanoptic in the training loop: several processes, half precision, and resuming to the last bit."""

import pytest
import torch

from clipself_seg.checkpoints.training_state import trained_parameters, trained_tensors
from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.models import OpenPanoptic
from tests.models.panoptic.small import CONFIG, FCCLIP, MASKED, SMALL, model_of, training_samples
from tests.training.test_trainer_data_parallel import gradients, train_model
from tests.two_processes import in_two_processes

RUN = ("SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.IMS_PER_BATCH", "2")
RUN += ("SOLVER.WARMUP_ITERS", "1", "SOLVER.SCHEDULE", "steps", "SOLVER.STEPS", "(3,)")
RECORDS = [{"file_name": f"{index}.jpg", "image_id": index} for index in range(4)]


def mapper(record, draw):
    return training_samples(2)[(draw + record["image_id"]) % 2] | record


def train(folder, opts, resume=False, kind=OpenPanoptic):
    cfg = load_config(CONFIG, [*SMALL, *map(str, (*RUN, *opts)), "OUTPUT_DIR", str(folder)])
    model = model_of(*RUN, *opts).train()
    model.__class__ = kind
    train_model(model, cfg, RECORDS, mapper, resume)
    return {name: p.detach().clone() for name, p in trained_tensors(model).items()}


VARIANTS = {
    "label": ("MODEL.MASK_GENERATOR.VARIANT", "label"),
    "caption": ("MODEL.MASK_GENERATOR.VARIANT", "caption"),
    "fcclip": FCCLIP,
    "plain": MASKED,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_without_unused_parameters_share_their_gradients(tmp_path, variant):
    def work(rank, folder):
        model = model_of(*VARIANTS[variant]).train()
        return gradients(model, training_samples(3)[rank : rank + 2])

    first, second = in_two_processes(work, tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(value.isfinite().all() for value in first.values())


# The plain decoder's second block keeps queries inside their masks at random where the run is broken.
@pytest.mark.parametrize("variant", ["label", "fcclip", "plain"])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, variant):
    opts = VARIANTS[variant]
    straight = train(tmp_path, opts)
    (tmp_path / "checkpoints/iteration_0000004.safetensors").unlink()
    resumed = train(tmp_path, opts, resume=True)
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)


def test_a_finished_run_of_a_schedule_of_steps_goes_on_as_if_it_had_been_longer(tmp_path):
    straight = train(tmp_path / "straight", ())
    train(tmp_path / "short", ("SOLVER.MAX_ITER", "2"))
    longer = train(tmp_path / "short", (), resume=True)
    assert all(torch.equal(longer[name], straight[name]) for name in straight)


def test_masked_attention_ends_with_the_steps_of_the_optimiser_and_a_run_keeps_their_number(
    tmp_path,
):
    told = []

    class Watched(OpenPanoptic):
        def before_optimizer_step(self, step, steps):
            super().before_optimizer_step(step, steps)
            told.append((step, steps, self.generator.decoder.attn_mask_probs.tolist()))

    train(tmp_path, (*MASKED, "SOLVER.ACCUMULATE", 2), kind=Watched)
    assert [one[:2] for one in told] == [(step, 4) for step in range(4)]
    kept = [probability for _, _, (_, probability) in told]
    assert kept[:2] == [1, 1] and 0 < kept[2] < 1 and kept[3] == 0
    with pytest.raises(InputError, match="SOLVER.MAX_ITER was 4, is 6"):
        train(tmp_path, (*MASKED, "SOLVER.MAX_ITER", "6"), resume=True)


def test_fcclips_clip_is_frozen_void_learns_and_embeddings_do_not_decay():
    model = model_of(*FCCLIP).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    solver = load_config(CONFIG, [*SMALL, *FCCLIP]).SOLVER
    groups = model.optimizer_groups(solver)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    trained = trained_parameters(model)
    assert decay.keys() == {id(p) for p in trained.values()}
    # Queries, levels and void are embeddings; the pixel decoder's levels and the scale are plain parameters.
    plain = {name for name, p in trained.items() if not decay[id(p)]}
    embeddings = {name for name, _ in named_embeddings(model)}
    norms = {name for name in plain if name not in embeddings}
    assert embeddings <= plain and len(embeddings) == 4
    assert all(trained[name].dim() == 1 for name in norms)
    decoder = "generator.sem_seg_head.pixel_decoder.transformer.level_embed"
    assert decay[id(trained[decoder])] == solver.WEIGHT_DECAY > 0
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    sum(model(training_samples()).values()).backward()
    optimizer.step()
    moved = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    assert "generator.void_embedding.weight" in moved
    assert not {name for name in moved if name.startswith(("clip.", "branch_clip.", "backbone."))}
    assert moved == set(trained)


def named_embeddings(model):
    generator = model.generator.named_modules(prefix="generator")
    return [(f"{n}.weight", m) for n, m in generator if isinstance(m, torch.nn.Embedding)]


def test_half_precision_changes_the_losses_little():
    found = []
    for enabled in (False, True):
        opts = ("SOLVER.AMP.ENABLED", enabled, "SOLVER.AMP.DTYPE", "bfloat16")
        model = model_of(*opts).train()
        torch.manual_seed(0)
        losses = model(training_samples())
        sum(losses.values()).backward()
        assert all(p.grad.isfinite().all() for p in trained_parameters(model).values())
        found.append(torch.stack(list(losses.values())).detach())
    torch.testing.assert_close(*found, rtol=0.05, atol=0.05)
    assert not torch.equal(*found)
