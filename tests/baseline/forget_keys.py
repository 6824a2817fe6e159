"""Take keys that the configuration has no more out of the metadata of the kept states; their tensors stay.

python -m tests.baseline.forget_keys
"""

import lzma
import sys
import tempfile
from pathlib import Path

from clipself_seg.checkpoints.training_state import read_state, write_state
from clipself_seg.config.keys import default_config
from clipself_seg.yaml_files import leaves

KNOWN = dict(leaves(default_config()))


def forget(kept: Path) -> list[str]:
    """Write a compressed state anew without such keys; their names."""
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / kept.stem
        state.write_bytes(lzma.decompress(kept.read_bytes()))
        tensors, metadata = read_state(state)
        gone = [key for key in metadata["run"] if key.isupper() and key not in KNOWN]
        metadata["run"] = {k: v for k, v in metadata["run"].items() if k not in gone}
        if gone:
            write_state(state, tensors, metadata)
            kept.write_bytes(lzma.compress(state.read_bytes(), preset=9))
        return gone


if __name__ == "__main__":
    for path in sorted(Path(__file__).parent.glob("*/*.xz")):
        sys.stdout.write(f"{path.parent.name}: {', '.join(forget(path)) or 'nothing to forget'}\n")
