"""A release: one version and one address, an extra with everything, and workflows whose commands there are."""

import configparser
import re
import shlex
import subprocess

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import clipself_seg
from clipself_seg.__main__ import usage
from clipself_seg.commands.doctor import EXTRAS
from setup_steps import PYTHONS
from tests.conftest import ROOT
from tests.test_docs import program_of

WORKFLOWS = {path.stem: path.read_text() for path in (ROOT / ".github/workflows").glob("*.yml")}
CFG = configparser.ConfigParser()
CFG.read(ROOT / "setup.cfg")
JOBS = {
    f"{name}/{job}": steps
    for name, text in WORKFLOWS.items()
    for job, steps in yaml.safe_load(text)["jobs"].items()
}
RUN = [step["run"] for job in JOBS.values() for step in job["steps"] if "run" in step]


def test_version_citation_and_changes_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changes = re.findall(r"^## (\d\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert citation["version"] == changes[0] == clipself_seg.__version__
    assert f"\nVersion {clipself_seg.__version__} · " in (ROOT / "README.md").read_text()


def test_readme_help_and_the_package_begin_with_one_sentence():
    sentence = CFG["metadata"]["description"]
    assert f"# clipself_seg\n\n**{sentence}**\n" in (ROOT / "README.md").read_text()
    assert f"\n{sentence}\n" in usage()


def test_the_address_stands_in_one_line():
    lines = CFG["metadata"]["project_urls"].splitlines()
    (address,) = [line.partition(" = ")[2] for line in lines if line.startswith("Source")]
    listed = subprocess.run(["git", "grep", "-FIc", address], cwd=ROOT, capture_output=True)
    assert listed.stdout.decode().split() == ["setup.cfg:1"]


@pytest.mark.parametrize("owner, status", [("OWNER", 1), ("somebody", 0)])
def test_a_release_is_refused_while_the_address_is_a_placeholder(tmp_path, owner, status):
    text = re.sub("/OWNER/", f"/{owner}/", (ROOT / "setup.cfg").read_text())
    (tmp_path / "setup.cfg").write_text(text)
    (check,) = [line for line in RUN if "OWNER" in line]
    assert subprocess.run(["bash", "-c", check], cwd=tmp_path).returncode == status


def test_the_image_has_pinned_versions_that_setup_cfg_allows_and_another_user_than_root():
    lines = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    pins = {name: version for name, _, version in (line.partition("==") for line in lines)}
    asked = [line for line in CFG["options"]["install_requires"].splitlines() if line[:1].isalpha()]
    for needed in map(Requirement, asked):
        assert pins[canonicalize_name(needed.name)] in needed.specifier
    text = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^FROM python:3\.\d+\.\d+-slim-\w+$", text, re.M)
    assert "--constraint /src/constraints.txt" in text
    assert text.index("\nRUN useradd") < text.index("\nUSER user\n") < text.index("\nENTRYPOINT")


def test_all_is_every_extra_of_a_user():
    extras = CFG["options.extras_require"]
    named = re.search(r"clipself_seg\[(.*)\]", extras["all"])
    assert named and set(named[1].split(",")) == extras.keys() - set(
        "all dev docs notebooks heic video".split()
    )
    assert EXTRAS.keys() == extras.keys() - {"all", "dev", "docs", "notebooks"}  # of doctor


def test_every_python_of_the_metadata_is_tested():
    classifiers = re.findall(r"Python :: (3\.\d+)", CFG["metadata"]["classifiers"])
    for job in ("ci/test", "release/test"):
        assert JOBS[job]["strategy"]["matrix"]["python"] == [*PYTHONS] == classifiers


@pytest.mark.parametrize("line", RUN)
def test_a_command_of_a_workflow_exists(line):
    program, *words = shlex.split(line)
    if program == "clipself-seg":
        parser, rest = program_of((program, *words))
        parser.parse_args(rest)
    elif program == "make":
        assert re.search(rf"^\.PHONY:.* {words[0]}( |$)", (ROOT / "Makefile").read_text(), re.M)
    elif program == "bash":
        assert (ROOT / words[0]).is_file()
    else:
        assert program in ("python", "test")
