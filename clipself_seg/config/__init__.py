"""Every key of a run, and how a configuration file is read."""

from clipself_seg.config.keys import READINGS, add_clipself_seg_config
from clipself_seg.config.load import flatten, load_config

__all__ = ["READINGS", "add_clipself_seg_config", "flatten", "load_config"]
