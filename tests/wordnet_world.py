"""A WordNet of ten synsets, in the files of its database."""

from __future__ import annotations

# Lemmas of each synset, and the synsets above it. "crane" is a bird and a machine; "light" is first of all no thing.
SYNSETS = {
    100: (["entity"], []),
    110: (["physical_entity"], [100]),
    120: (["Artifact"], [110]),
    130: (["Seat"], [120]),
    140: (["sofa", "couch"], [130]),
    150: (["chair"], [130]),
    160: (["machine", "crane"], [120]),
    170: (["bird", "crane"], [110]),
    180: (["brightness", "light"], [100]),
    190: (["lamp", "light"], [120]),
}
SENSES = {"crane": [170, 160], "light": [180, 190]}


def write_wordnet(folder):
    """Its files, as wndb(5WN) has them."""
    licence = "  1 This software and database is being provided to you, the LICENSEE, by  \n"
    data, lemmas_of = [], {}
    for offset, (words, above) in SYNSETS.items():
        listed = " ".join(f"{word} 0" for word in words)
        pointers = " ".join(f"@ {parent:08d} n 0000" for parent in above)
        count = f"{len(above):03d}"
        data.append(f"{offset:08d} 03 n {len(words):02x} {listed} {count} {pointers} | gloss | x\n")
        for word in words:
            lemmas_of.setdefault(word.lower(), []).append(offset)
    index = []
    for lemma, offsets in sorted(lemmas_of.items()):
        offsets = " ".join(f"{one:08d}" for one in SENSES.get(lemma, offsets))
        count = len(offsets.split())
        index.append(f"{lemma} n {count} 2 @ ~ {count} 1 {offsets}  \n")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.noun").write_text(licence + "".join(data))
    (folder / "index.noun").write_text(licence + "".join(index))
    (folder / "noun.exc").write_text("benches bench\nlice louse\n")
    return folder
