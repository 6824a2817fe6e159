"""Write the baseline anew with the code that stands beside this folder; README.md says which code that was."""

import json
import lzma
import sys
import tempfile
from pathlib import Path

import train_net
from tests.baseline import runs


def main(target: Path) -> None:
    """Write states, metrics, groups and results below `target`."""
    with tempfile.TemporaryDirectory() as name, runs.surroundings(Path(name)) as clip:
        folder = Path(name)
        groups = {}
        for kind, training in runs.STATES.items():
            command = training.command(clip, folder / kind, SOLVER__MAX_ITER=runs.STEPS)
            steps = runs.train(command, runs.ARCHITECTURES[kind], cut_step=runs.SAVED)
            groups[kind] = steps[0].groups
            keep_state(folder / kind, target / kind)
        for kind, training in runs.OTHER_GROUPS.items():
            command = training.command(clip, folder / kind, SOLVER__MAX_ITER=1)
            groups[kind] = runs.train(command, runs.ARCHITECTURES[kind.split(",")[0]])[0].groups
        write(target / "groups.json", groups)
        write(target / "results.json", {kind: results(kind, folder) for kind in runs.EVALUATIONS})


def keep_state(run: Path, target: Path) -> None:
    """The state in the middle of a run, compressed, and the numbers of every step."""
    target.mkdir(exist_ok=True)
    state = run / "checkpoints" / f"iteration_{runs.SAVED:07d}.safetensors"
    (target / f"{state.name}.xz").write_bytes(lzma.compress(state.read_bytes(), preset=9))
    (target / "metrics.json").write_bytes((run / "metrics.json").read_bytes())


def results(kind: str, folder: Path) -> dict[str, object]:
    """The numbers of an evaluation of shipped weights."""
    assert train_net.main(runs.evaluation(kind, folder / kind)) == 0
    return json.loads((folder / kind / "results.json").read_text())["results"]


def write(path: Path, content: object) -> None:
    """JSON that a diff can show."""
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
