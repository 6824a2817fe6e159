"""Every key of a run with its explanation, and how a configuration file is read and checked.

Open `keys.py` first, then `load.py`; keys of one task are in the file of its name. `other_projects.py` adds them to
configurations of other projects.
"""

from clipself_seg import detectron2_needed  # noqa: F401  (says what to do where it is missing)
from clipself_seg.config.keys import READOUTS, WHOLE
from clipself_seg.config.load import load_config
from clipself_seg.config.other_projects import add_clip_backbone_config, add_clipself_seg_config

__all__ = [
    "READOUTS",
    "WHOLE",
    "add_clip_backbone_config",
    "add_clipself_seg_config",
    "load_config",
]
