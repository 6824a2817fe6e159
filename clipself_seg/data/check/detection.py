"""Checks of the data sets for detection."""

from __future__ import annotations

from clipself_seg.data.check.findings import Finding, Options, check_images
from clipself_seg.data.datasets.detection import DETECTION_DATASETS, detection_records
from clipself_seg.errors import InputError


def check_detection(name: str, options: Options) -> Finding:
    """Check the annotation file and the images that it lists.

    Args:
        name: data set of `DETECTION_DATASETS`.
        options: thoroughness of the check.
    """
    files = DETECTION_DATASETS[name]
    advice = files.root.advice
    finding = Finding(name, "complete", official=files.official_count)
    images, annotations = files.path(files.images), files.path(files.annotations)
    missing = [path for path in (images, annotations) if not path.exists()]
    if missing:
        note = f"missing: {', '.join(map(str, missing))}"
        finding = finding._replace(missing=len(missing), notes=(note,), mend=advice)
        if annotations.exists():
            return finding._replace(state="incomplete")
        if files.archive and files.path(files.archive).exists():
            return finding._replace(state="unprepared", mend=files.prepare)
        return finding._replace(state="absent")
    try:
        records = detection_records(name)
    except InputError as error:
        mend = files.prepare or advice
        return finding._replace(state="broken", notes=(str(error),), mend=mend)
    return check_images(finding, records, options, advice)
