"""Training as it was before the package was rearranged: states are read, steps and groups are the same."""

import json
import lzma

import pytest
import torch
from safetensors import safe_open

from tests.baseline import runs
from tests.conftest import BASELINE

KINDS = tuple(runs.STATES)
GROUPS = json.loads((BASELINE / "groups.json").read_text())
RTOL = 1e-4  # CPUs add in other orders; on one machine the numbers are equal
# Of CAT-Seg, whose labels torch resizes since, to pixels that lie half a pixel away.
RTOL_LABELS = 1e-3

STATE = f"iteration_{runs.SAVED:07d}.safetensors"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The checkpoint of the tiny CLIP, as long as it and the small worlds are known."""
    with runs.surroundings(tmp_path_factory.mktemp("baseline")) as path:
        yield path


@pytest.fixture(scope="module", params=KINDS)
def anew(request, clip):
    """A kind, the folder of its run from the beginning, and the steps that its optimiser met."""
    folder = clip.parent / request.param
    command = runs.STATES[request.param].command(clip, folder, SOLVER__MAX_ITER=runs.STEPS)
    return request.param, folder, runs.train(command, runs.ARCHITECTURES[request.param])


def unpacked(kind, folder):
    """The kept state, laid into a run's folder."""
    path = folder / "checkpoints" / STATE
    path.parent.mkdir(parents=True)
    path.write_bytes(lzma.decompress((BASELINE / kind / f"{STATE}.xz").read_bytes()))
    return path


def content(path):
    """Name -> tensor of a state, and its metadata, whose facts are JSON within JSON."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        (metadata,) = file.metadata().items()
    about = json.loads(metadata[1])
    return tensors, {metadata[0]: about | {"facts": json.loads(about["facts"])}}


def rows(path, first):
    """What a run logged of its steps from one on, but for the time that they took."""
    lines = map(json.loads, path.read_text().splitlines())
    kept = [{k: v for k, v in line.items() if k not in runs.NOT_KEPT} for line in lines]
    return [line for line in kept if line["iteration"] >= first]


def by_parameter(groups):
    """Name -> what the optimiser does with a parameter; each has to be in one group alone."""
    found = {}
    for group in groups:
        for name in group["params"]:
            assert name not in found
            found[name] = {key: value for key, value in group.items() if key != "params"}
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_is_resumed_to_the_last_bit_and_the_run_goes_on_as_it_did(kind, clip, tmp_path):
    stored, _ = content(unpacked(kind, tmp_path))
    command = runs.STATES[kind].command(clip, tmp_path, "--resume", SOLVER__MAX_ITER=runs.STEPS)
    steps = runs.train(command, runs.ARCHITECTURES[kind])
    log = (tmp_path / "log.txt").read_text()
    assert f"resumed after {runs.SAVED} steps" in log and "WARNING" not in log
    assert len(steps) == runs.STEPS - runs.SAVED and steps[0].tensors.keys() == stored.keys()
    different = [n for n, t in steps[0].tensors.items() if not torch.equal(t, stored[n])]
    assert not different
    expected = rows(BASELINE / kind / "metrics.json", first=runs.SAVED)
    logged = rows(tmp_path / "metrics.json", first=0)
    assert len(logged) == len(expected)
    for now, before in zip(logged, expected):
        assert now == pytest.approx(before, rel=RTOL)


def test_a_state_is_written_under_the_same_names(anew, tmp_path):
    kind, folder, _ = anew
    (before, told_before), (now, told) = (
        content(path) for path in (unpacked(kind, tmp_path), folder / "checkpoints" / STATE)
    )
    shapes = [{n: (t.dtype, t.shape) for n, t in tensors.items()} for tensors in (before, now)]
    assert shapes[0] == shapes[1]
    assert told.keys() == told_before.keys()
    (about_before,), (about,) = told_before.values(), told.values()
    assert about.keys() == about_before.keys()
    assert about["facts"].keys() == about_before["facts"].keys()
    run_before = about_before["facts"].pop("run")
    run = about["facts"].pop("run")
    # Later keys may be more; a run that knows fewer lets go on what it should refuse.
    assert {key: run.get(key, "gone") for key in run_before} == run_before
    assert about["facts"] == about_before["facts"]


def test_a_seed_begins_the_run_that_it_began(anew):
    kind, folder, _ = anew
    expected = rows(BASELINE / kind / "metrics.json", first=0)[: runs.SAVED]
    rtol = RTOL_LABELS if kind == "cat_seg" else RTOL
    for now, before in zip(rows(folder / "metrics.json", first=0), expected):
        assert now == pytest.approx(before, rel=rtol)


def test_parameters_have_the_rates_and_decays_that_they_had(anew):
    kind, _, steps = anew
    assert by_parameter(steps[0].groups) == by_parameter(GROUPS[kind])


@pytest.mark.parametrize("kind", runs.OTHER_GROUPS)
def test_other_parts_that_train_have_the_rates_and_decays_that_they_had(kind, clip, tmp_path):
    command = runs.OTHER_GROUPS[kind].command(clip, tmp_path, SOLVER__MAX_ITER=1)
    (step,) = runs.train(command, runs.ARCHITECTURES[kind.split(",")[0]])
    assert by_parameter(step.groups) == by_parameter(GROUPS[kind])
