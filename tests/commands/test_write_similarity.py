"""The command that makes a table of similarities."""

from __future__ import annotations

from clipself_seg.commands.write_similarity import main
from clipself_seg.data.similarity import load_similarity
from clipself_seg.data.vocabulary import load_vocabulary
from tests.wordnet_world import write_wordnet


def test_a_table_of_own_words(tmp_path, capsys):
    words = tmp_path / "words.json"
    words.write_text('["sofa|couch", "chair", "unicorn"]')
    path = tmp_path / "table.json"
    arguments = [str(words), "--wordnet", str(write_wordnet(tmp_path / "dict")), "--show"]
    assert main([*arguments, "--output", str(path)]) == 0
    said = capsys.readouterr().out
    assert "sofa: 140 couch\n" in said and "unicorn: -\n" in said
    assert said.endswith(f"{path}: 3 classes, 1 of them unknown: unicorn\n")
    similarity = load_similarity(str(path), load_vocabulary(words))
    assert similarity[0].tolist() == [1, 1 / 3, 0]


def test_a_folder_without_wordnet_is_one_line(tmp_path, capsys):
    arguments = ["ade20k_150", "--wordnet", str(tmp_path), "--output", str(tmp_path / "x.json")]
    assert main(arguments) == 2
    assert "index.noun is missing: give the folder of WordNet" in capsys.readouterr().err
