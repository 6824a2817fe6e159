"""The laboratory: what needs the repository and no installed package needs.

It imports `clipself_seg`, which never imports it, and inside itself downwards: `prepare`, `mini` and `precompute`, then
`tables`, then `quickstart`. The scripts in tools/ are its commands.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, where train_net.py, configs/ and docs/ are."""
