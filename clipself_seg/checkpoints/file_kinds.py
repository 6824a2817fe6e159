"""Tells the kind of a file of weights by its beginning, and refuses at once one that cannot be read, without torch."""

from __future__ import annotations

import zipfile
from pathlib import Path

from clipself_seg.checkpoints.bounds import refusing
from clipself_seg.errors import InputError

ARCHIVE = b"PK\x03\x04"  # the beginning of what `torch.save` writes
LONGEST_HEADER = 100_000_000  # bytes, by safetensors' own limit
PICKLE = b"\x80"  # the beginning of what old versions of torch wrote
OF_TORCH = (".pt", ".pth", ".bin", ".ckpt")
# Beginning of what is often saved in place of weights -> what it is, and the way out.
IN_PLACE_OF_WEIGHTS = {
    b"<": "a web page in place of weights: open it in a browser, and fetch the file that it leads to",
    b"version https://git-lfs": "a pointer of Git LFS in place of weights: fetch the file itself, by git lfs pull for "
    "example",
}


def is_safetensors(path: Path) -> bool:
    """Tells a safetensors file by its beginning; by its suffix if the beginning is of no known kind.

    Raises:
        InputError: it cannot be read.
    """
    start = _beginning(path)
    if _of_safetensors(start):
        return True
    known = start.startswith((b"PK", PICKLE))
    return not known and path.suffix.lower() == ".safetensors"


def _of_safetensors(start: bytes) -> bool:
    """True for the length of a JSON object, and the object; the first byte may be any: that of a pickle, too."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= LONGEST_HEADER


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); make it readable, or give another"
        ) from None


def require_readable(path: Path) -> None:
    """Refuses a file that was cut off, or is of a kind that is not read; a folder passes.

    Of safetensors the header says how long the file is, of an archive the record at its end is missing. Files of
    other kinds pass, unless their names end as those of torch and safetensors do.

    Raises:
        InputError: in a sentence what to do.
    """
    if not path.is_file():
        return
    start = _beginning(path)
    if not start:
        raise InputError(f"{path} is empty: fetch it again")
    for beginning, what in IN_PLACE_OF_WEIGHTS.items():
        if not _of_safetensors(start) and start.lstrip().startswith(beginning):
            raise InputError(f"{path} is {what}")
    if is_safetensors(path):
        from safetensors import safe_open

        with refusing(path, "safetensors file"), safe_open(path, framework="np"):
            return
    if not start.startswith(ARCHIVE):
        if path.suffix.lower() in OF_TORCH and not start.startswith(PICKLE):
            with refusing(path, "PyTorch file"):
                raise ValueError("it begins otherwise than what torch.save writes")
        return
    with refusing(path, "PyTorch file"), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if names and all(name.endswith(".npy") for name in names):
        raise InputError(
            f"{path} has numpy's arrays (.npz), which are not read here: of TIPSv2 give the name of both towers, "
            "tipsv2-b14, tipsv2-l14, tipsv2-so400m14 or tipsv2-g14"
        )
    if not any(name.endswith("/data.pkl") for name in names):
        raise InputError(
            f"{path} is an archive of other files ({', '.join(names[:2])}): unpack it, and give the weights in it"
        )
    if any(name.endswith("/constants.pkl") for name in names):
        raise InputError(
            f"{path} is a TorchScript archive, a program, which is not read: of OpenAI's CLIPs give the name, such as "
            "openai-vitb16, of others save the state dict alone, torch.save(module.state_dict(), FILE)"
        )
