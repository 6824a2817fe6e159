"""CLIPSelf: what trains, what never changes, and what is evaluated and written."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import roi_align

from clipself_seg.checkpoints.dense_feature import DenseFeature
from clipself_seg.clip import load_clip
from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.models import CLIPSelf
from clipself_seg.models.build import build_model
from clipself_seg.models.clipself import DistillationTraining
from clipself_seg.models.distillation import WeightedObjectives
from tests.tiny import (
    SIDE,
    WORDS,
    one_step,
    random_clip,
    tiny_clipself,
    tiny_region_sample,
    tiny_samples,
)


def state(module):
    """A copy of all tensors of a module."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(before, after):
    """Names of the tensors that are not bit-identical."""
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_loss_is_that_of_roi_align_on_unit_dense_features():
    model, samples = tiny_clipself(), tiny_samples(3)
    images = model.teacher.preprocess(torch.stack([s["image"] for s in samples]))
    dense = F.normalize(model.student.dense(images), dim=1)
    grid = torch.tensor(dense.shape[-1])
    boxes = [s["boxes"] * grid for s in samples]
    student = roi_align(dense, boxes, 1, 1.0, -1, aligned=True)[..., 0, 0]
    crops = model.teacher.preprocess(torch.cat([s["crops"] for s in samples]))
    teacher = model.teacher.encode_image(crops)
    expected = 1 - F.cosine_similarity(student, teacher).mean()
    torch.testing.assert_close(model(samples)["loss_clipself"], expected)


def test_teacher_is_bit_identical_and_in_eval_mode_after_a_step():
    model = tiny_clipself()
    before = state(model.teacher)
    one_step(model.train())
    assert not changed(before, model.teacher.state_dict())
    assert not any(module.training for module in model.teacher.modules())
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())


@pytest.mark.parametrize("blocks", [-1, 1, 3])
def test_one_step_changes_the_last_blocks_only(blocks):
    model = tiny_clipself(trainable_blocks=blocks)
    before = state(model.student)
    one_step(model)
    depth = len(model.student.blocks)
    expected = range(depth)[-blocks:] if blocks > 0 else range(depth)
    names = changed(before, model.student.state_dict())
    assert names == {
        name for name in before if any(f"resblocks.{index}." in name for index in expected)
    }


def test_a_number_of_blocks_that_cannot_train_is_refused():
    with pytest.raises(InputError, match="99"):
        tiny_clipself(trainable_blocks=99)
    for blocks, wanted in ("0", "0 trains nothing"), ("-2", "at least -1"):
        with pytest.raises(InputError, match=f"TRAINABLE_BLOCKS must be .*{wanted}"):
            load_config(None, ["MODEL.CLIP.TRAINABLE_BLOCKS", blocks])


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.7, 1.0])
def test_alpha_mixes_student_and_original(alpha):
    model = tiny_clipself(alpha=alpha)
    one_step(model)
    mixed, teacher = model.ensembled_clip(), model.teacher
    student, original = model.student.state_dict(), teacher.visual.state_dict()
    for name, tensor in mixed.visual.state_dict().items():
        expected = alpha * student[name].double() + (1 - alpha) * original[name].double()
        torch.testing.assert_close(tensor.double(), expected, atol=1e-7, rtol=1e-6)
        exact = {0.0: original, 1.0: student}.get(alpha)
        assert exact is None or torch.equal(tensor, exact[name])
    assert mixed.text is teacher.text and torch.equal(mixed.logit_scale, teacher.logit_scale)


def test_evaluation_reads_with_the_mixed_weights_and_training_goes_on_with_the_student():
    model = tiny_clipself(alpha=0.5, templates="single")
    one_step(model)
    before, samples = state(model.student), [tiny_region_sample()]
    model.eval().set_vocabulary(WORDS)
    scores = model(samples)[0]["scores"]
    mixed = model.ensembled_clip()
    images = mixed.preprocess(samples[0]["image"][None])
    with torch.no_grad():
        expected = (
            mixed.encode_boxes(images, [samples[0]["boxes"]]) @ model.bank.embed(model.names).T
        )
    torch.testing.assert_close(scores["boxes"], expected)
    model.train()
    assert not changed(before, model.student.state_dict())
    assert "loss_clipself" in model(tiny_samples(1))


def test_exported_checkpoint_is_a_plain_clip(tmp_path):
    model = tiny_clipself(alpha=0.7)
    one_step(model)
    model.export(tmp_path / "clip.safetensors")
    read = load_clip("ViT-Mini-8", tmp_path / "clip.safetensors")
    assert not changed(state(model.ensembled_clip()), read.state_dict())


def test_average_over_images_reaches_the_loss():
    samples = tiny_samples(2, first=3)  # four regions and one
    single = torch.stack([tiny_clipself()([sample])["loss_clipself"] for sample in samples])
    model = tiny_clipself(loss_average="images")
    torch.testing.assert_close(model(samples)["loss_clipself"], single.mean())


def test_copies_have_no_tensor_of_the_clip_that_was_given():
    clip = random_clip()
    model = CLIPSelf(clip=copy.deepcopy(clip))
    before = state(clip)
    one_step(model)
    assert not changed(before, clip.state_dict()) and SIDE == clip.image_size


def test_student_starts_from_given_weights_and_only_as_a_student_of_the_same_clip():
    first = tiny_clipself()
    one_step(first)
    again = tiny_clipself(student=first.learner.copy())
    assert not changed(state(first.student), again.student.state_dict())
    stranger = first.learner.copy()
    with torch.no_grad():
        stranger.visual.proj.add_(1)
    with pytest.raises(InputError, match="STUDENT_WEIGHTS: proj does not train and differs"):
        tiny_clipself(student=stranger)


@pytest.mark.parametrize("part", ["in_proj_weight", "in_proj_bias"])
def test_a_student_whose_attention_was_trained_goes_on_only_with_what_trains_it(part):
    preserved = tiny_clipself()
    with torch.no_grad():
        # A query's, which preservation trains.
        getattr(preserved.student.blocks[-1].attn, part)[0].add_(1)
    expected = copy.deepcopy(preserved.student)
    with pytest.raises(InputError, match=f"queries of the last block's {part} does not train"):
        tiny_clipself(student=preserved.learner)
    with_preservation = WeightedObjectives({"CROPS": 1.0, "OWN_CROPS": 1.0})
    model = tiny_clipself(student=preserved.learner, target=with_preservation)
    model.after_optimizer_step()
    assert not changed(state(expected), model.student.state_dict())


def gated_clipself(**how):
    return CLIPSelf(clip=random_clip(dense=DenseFeature("gated_multi_value", 2)), **how)


def test_a_gate_learns_is_mixed_with_its_start_and_written_with_its_name(tmp_path):
    model = gated_clipself(alpha=0.25)
    before = state(model.student)
    one_step(model.train())
    assert {"dense_gate.weight", "dense_gate.bias"} < changed(before, model.student.state_dict())
    mixed = model.ensembled_clip().visual.dense_gate.weight
    torch.testing.assert_close(mixed, 0.25 * model.student.dense_gate.weight)
    model.export(tmp_path / "clip.safetensors")
    back = load_clip("ViT-Mini-8", tmp_path / "clip.safetensors")
    assert torch.equal(back.visual.dense_gate.weight, mixed)
    assert back.distilled == back.visual.dense_feature == DenseFeature("gated_multi_value", 2)


@pytest.mark.parametrize("blocks", [-1, 1])
def test_of_the_last_block_the_values_learn_where_they_are_the_dense_feature(blocks):
    clip = random_clip(dense=DenseFeature("value"))
    model = CLIPSelf(clip=clip, training=DistillationTraining(blocks))
    last = model.student.blocks[-1]
    width = last.attn.in_proj_weight.shape[1]
    matrix, before = last.attn.in_proj_weight.detach().clone(), state(last)
    one_step(model)
    names = changed(before, last.state_dict())
    assert names == {n for n in before if n.startswith(("ln_1", "attn"))}
    assert torch.equal(matrix[: 2 * width], last.attn.in_proj_weight[: 2 * width])


def test_an_export_without_a_choice_is_of_token(tmp_path):
    tiny_clipself().export(tmp_path / "clip.pt")
    assert load_clip("ViT-Mini-8", tmp_path / "clip.pt").distilled == DenseFeature()


def test_captions_and_a_gate_that_they_could_not_train_are_refused():
    opts = ["MODEL.CLIPSELF.TARGET", "captions", "MODEL.CLIP.DENSE", "gated_multi_value"]
    with pytest.raises(InputError, match="the gate would not learn"):
        build_model(load_config(None, opts))
    with pytest.raises(InputError, match='ATTENTION must be "none" unless DENSE is "token"'):
        load_config(None, ["MODEL.CLIP.ATTENTION", "kk", "MODEL.CLIP.DENSE", "value"])
