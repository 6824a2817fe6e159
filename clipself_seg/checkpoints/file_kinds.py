"""Tells the kind of a file of weights by its beginning, and refuses at once one that cannot be read, without torch."""

from __future__ import annotations

import zipfile
from pathlib import Path

from clipself_seg.checkpoints.bounds import refusing
from clipself_seg.errors import InputError

ARCHIVE = b"PK\x03\x04"  # the beginning of what `torch.save` writes
LONGEST_HEADER = 100_000_000  # bytes, by safetensors' own limit


def is_safetensors(path: Path) -> bool:
    """Tells a safetensors file by its beginning; by its suffix if the beginning is of no known kind.

    Raises:
        InputError: it cannot be read.
    """
    start = _beginning(path)
    if _of_safetensors(start):
        return True
    known = start.startswith((b"PK", b"\x80"))  # torch's archives, and the pickles of old versions
    return not known and path.suffix.lower() == ".safetensors"


def _of_safetensors(start: bytes) -> bool:
    """True for the length of a JSON object, and the object; the first byte may be any: that of a pickle, too."""
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= LONGEST_HEADER


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(9)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); make it readable, or give another"
        ) from None


def require_readable(path: Path) -> None:
    """Refuses a file that was cut off, or is of a kind that is not read; a folder passes.

    Of safetensors the header says how long the file is, of an archive the record at its end is missing. Files of
    other kinds pass.

    Raises:
        InputError: in a sentence what to do.
    """
    if not path.is_file():
        return
    start = _beginning(path)
    if _of_safetensors(start):
        from safetensors import safe_open

        with refusing(path, "safetensors file"), safe_open(path, framework="np"):
            return
    if not start.startswith(ARCHIVE):
        return
    with refusing(path, "PyTorch file"), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if names and all(name.endswith(".npy") for name in names):
        raise InputError(
            f"{path} has numpy's arrays (.npz), one tower of TIPSv2 for example, under names that are not read "
            "here: give a file of torch or safetensors; TIPSv2's authors publish both towers as such, by the names "
            "tipsv2-b14, tipsv2-l14, tipsv2-so400m14 and tipsv2-g14"
        )
    if any(name.endswith("/constants.pkl") for name in names):
        raise InputError(
            f"{path} is a TorchScript archive, a program with weights as OpenAI published its CLIPs, and no such "
            "file is read: give the name of the same weights in its place, such as openai-vitb16 (clipself-seg weights "
            "lists them); of others save the state dict alone, torch.save(module.state_dict(), FILE)"
        )
