"""Keeps what the files of docs/examples register from other tests of the same process."""

import contextlib
import sys
from collections.abc import Iterator

from detectron2.modeling import META_ARCH_REGISTRY

from clipself_seg.clip import find_kind
from clipself_seg.clip.training_free import ATTENTIONS
from clipself_seg.config.declare import KEYS
from clipself_seg.config.relations import RELATIONS
from clipself_seg.evaluation.evaluation_base import METRICS
from clipself_seg.models.distillation import OBJECTIVES

NAMES = ("attention", "head", "metric", "objective", "tower")  # of the files my_NAME.py


@contextlib.contextmanager
def registries_kept() -> Iterator[None]:
    """Afterwards nothing is registered that was not before, and the files may be imported again."""
    tables = (ATTENTIONS, KEYS, METRICS, OBJECTIVES)
    tables += (find_kind.KINDS, find_kind._configs())
    before = [dict(table) for table in tables]
    relations = [*RELATIONS]
    try:
        yield
    finally:
        for table, content in zip(tables, before):
            table.clear()
            table.update(content)
        RELATIONS[:] = relations
        META_ARCH_REGISTRY._obj_map.pop("MyHead", None)
        for name in NAMES:
            sys.modules.pop(f"my_{name}", None)
