"""How alike the classes of vocabularies are in WordNet, as TEST.NUMBERS.SIMILARITY reads it.

    clipself-seg data similarity ade20k_150 --wordnet /usr/share/wordnet --output ade20k_150.json
    clipself-seg data similarity own_words.json --wordnet dict --output own_words_similarity.json

The folder is that of WordNet's database (index.noun, data.noun, noun.exc): /usr/share/wordnet of Debian's package
wordnet-base, or dict/ of Princeton's archive. Prints the classes that are in no synset, which are like none but
themselves; --show also the synset that each name stands for.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from clipself_seg.commands.options import command, flag, value


def _options(parser: argparse.ArgumentParser) -> None:
    value(parser, "vocabulary", "a vocabulary's name, or a .json or .txt file")
    for name, metavar, text in (
        ("wordnet", "FOLDER", "of the database"),
        ("output", "FILE", "to write"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar=metavar, help=text)
    value(parser, "--source", "what the file names as its source", "WordNet")
    flag(parser, "--show", "print the synset of each name")


@command(_options, __doc__)
def main(args: argparse.Namespace) -> int:
    """Write the table, and print what is unknown."""
    from clipself_seg.data.similarity import write_similarity
    from clipself_seg.data.vocabulary import read_words
    from clipself_seg.data.wordnet import class_distances, name_synset, read_wordnet

    vocabulary = read_words(args.vocabulary)
    wordnet = read_wordnet(args.wordnet)
    names = [entry.names for entry in vocabulary.classes]
    synsets = {name: name_synset(name, wordnet) for synonyms in names for name in synonyms}
    if args.show:
        first: dict[int, str] = {}
        for lemma, own in wordnet.senses.items():
            for synset in own:
                first.setdefault(synset, lemma)
        for name, at in synsets.items():
            sys.stdout.write(f"{name}: {'-' if at is None else f'{at} {first[at]}'}\n")
    write_similarity(args.output, vocabulary, class_distances(names, wordnet), args.source)
    unknown = [own[0] for own in names if all(synsets[name] is None for name in own)]
    sys.stdout.write(
        f"{args.output}: {len(names)} classes, {len(unknown)} of them unknown"
        f"{': ' + ', '.join(unknown) if unknown else ''}\n"
    )
    return 0
