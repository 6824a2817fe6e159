"""Damages files of every format that the project reads, and reads them with the project's own readers.

    python -m tests.fuzz.files --count 10000
    python -m tests.fuzz.files --count 500 --format vocabulary_txt image_png --seed 7 --keep output/fuzz
    python -m tests.fuzz.files --format image_png --file output/fuzz/image_png-7-123.png

`readers.py` lists the formats, `mutations.py` the damage, `sandbox.py` what a reader may do. A mutant may be
read, or refused in a sentence: by an `InputError`, or by trouble of the file system that a command turns
into one. Anything else is bad: another exception, a hang, memory above the limit, the end of the process,
a sentence as long as a page, a program that is started, an address, a file that is written elsewhere.

A format, a seed and a number decide a mutant. Bad ones are kept in --keep, as FORMAT-SEED-NUMBER, and --file
reads such a file again and shows its traceback. The status is 1 if anything is bad.
"""

import argparse
import collections
import functools
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from clipself_seg.files import write_json
from tests.fuzz.mutations import mutate
from tests.fuzz.readers import Reader, all_readers
from tests.fuzz.sandbox import BAD, GIB, READ, REFUSED, Limits, Outcome, Task, outcomes

REMADE = 0.3
"""Fraction of mutants that are well formed, of the formats that have such."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--count", type=int, default=10_000, help="mutants of all formats (10000)")
    options.add_argument("--format", nargs="+", default=[], metavar="NAME", help="only these")
    options.add_argument("--seed", type=int, default=0, help="(0)")
    options.add_argument("--keep", type=Path, metavar="FOLDER", help="for bad mutants")
    options.add_argument(
        "--json", type=Path, metavar="FILE", help="for the numbers and bad mutants"
    )
    options.add_argument("--seconds", type=float, default=30, help="limit of a mutant (30)")
    options.add_argument("--memory", type=float, default=2, help="limit of a mutant in GiB (2)")
    options.add_argument("--file", type=Path, help="a kept file, read in place of mutants")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Read all mutants and print the table; the status is 1 if one is bad."""
    args = parser().parse_args(arguments)
    known = all_readers()
    if unknown := set(args.format) - known.keys():
        raise SystemExit(f"no format {sorted(unknown)}; choose from {', '.join(known)}")
    readers = {name: known[name] for name in args.format or known}
    if args.file:
        return read_again(next(iter(readers.values())), args.file)
    limits = Limits(args.seconds, int(args.memory * GIB))
    started = time.monotonic()
    results = fuzz(readers, args.count, args.seed, limits, args.keep)
    counts = {name: count(of_format) for name, of_format in results.items()}
    sys.stdout.write(f"{table(counts)}\n{bad_table(results)}\n")
    if args.json:
        bad = {
            name: [vars(outcome) for outcome in of_format if outcome.verdict == BAD]
            for name, of_format in results.items()
            if counts[name][BAD]
        }
        settings = {"seed": args.seed, "seconds": round(time.monotonic() - started)}
        write_json(args.json, settings | {"formats": counts, "bad": bad})
    return int(any(numbers[BAD] for numbers in counts.values()))


def fuzz(
    readers: Mapping[str, Reader], total: int, seed: int, limits: Limits, keep: Path | None = None
) -> dict[str, list[Outcome]]:
    """The outcomes of so many mutants, divided among formats by their weights."""
    whole = sum(reader.weight for reader in readers.values())
    shares = {n: max(1, round(total * reader.weight / whole)) for n, reader in readers.items()}
    results: dict[str, list[Outcome]] = {}
    with tempfile.TemporaryDirectory() as place, tqdm(total=sum(shares.values())) as bar:
        folders = {name: Path(place) / name for name in readers}
        files = {name: _valid(reader, folders[name]) for name, reader in readers.items()}
        contents = {name: (folders[name] / file).read_bytes() for name, file in files.items()}
        for name, reader in readers.items():
            bar.set_description(name)
            donors = [c for n, c in contents.items() if readers[n].layout == reader.layout]
            make = functools.partial(_mutant, name, reader, contents[name], donors, seed)
            task = Task(reader.read, folders[name], files[name], make, limits)
            results[name] = []
            for outcome in outcomes(task, range(shares[name])):
                results[name].append(outcome)
                bar.update()
                if outcome.verdict == BAD and keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    kept = keep / f"{name}-{seed}-{outcome.index}{files[name].suffix}"
                    kept.write_bytes(make(outcome.index))
    return results


def _valid(reader: Reader, folder: Path) -> Path:
    """Write a valid file and read a copy, so that all is imported that is imported when needed.

    Returns:
        Its path in the folder.
    """
    folder.mkdir()
    name = reader.make(folder).relative_to(folder)
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(folder, Path(place) / "files")
        reader.read(Path(place) / "files" / name)
    return name


def _mutant(
    name: str, reader: Reader, content: bytes, donors: Sequence[bytes], seed: int, index: int
) -> bytes:
    rng = random.Random(f"{name} {seed} {index}")
    if reader.remake is not None and rng.random() < REMADE:
        return reader.remake(rng)
    return mutate(content, donors, reader.layout, rng)


def count(found: Sequence[Outcome]) -> dict[str, int]:
    """How many mutants there are of each verdict."""
    verdicts = collections.Counter(outcome.verdict for outcome in found)
    return {"mutants": len(found)} | {
        verdict: verdicts[verdict] for verdict in (READ, REFUSED, BAD)
    }


def table(counts: Mapping[str, Mapping[str, int]]) -> str:
    """One row a format, and one of all."""
    columns = ("mutants", READ, REFUSED, BAD)
    rows = [[name, *(numbers[c] for c in columns)] for name, numbers in counts.items()]
    rows.append(["all", *(sum(numbers[c] for numbers in counts.values()) for c in columns)])
    return tabulate(rows, ["format", *columns])


def bad_table(results: Mapping[str, Sequence[Outcome]]) -> str:
    """One row for each place in which a format goes wrong in one manner, with an example."""
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for name, found in results.items():
        for outcome in found:
            if outcome.verdict == BAD:
                groups.setdefault((name, outcome.kind, outcome.place), []).append(outcome)
    rows = [
        [*key, len(group), group[0].index, group[0].text.partition("\n")[0][:60]]
        for key, group in groups.items()
    ]
    titles = ["format", "bad", "place", "times", "such as", "text"]
    return tabulate(rows, titles, disable_numparse=True) if rows else "nothing bad"


def read_again(reader: Reader, file: Path) -> int:
    """Read a kept file, outside of the sandbox, and show what comes of it."""
    content = file.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        target = reader.make(Path(folder))
        target.write_bytes(content)
        try:
            reader.read(target)
        except Exception:
            traceback.print_exc()
            return 1
    sys.stdout.write("read\n")
    return 0


def work_in_one_thread() -> None:
    """Before torch and OpenCV are imported for good: their threads do not survive the forks."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    import cv2

    cv2.setNumThreads(1)


if __name__ == "__main__":
    work_in_one_thread()
    sys.exit(main())
