"""The files at the repository's root that other programs read: the citation, the licence, the hooks before a commit."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

import freqformer

ROOT = Path(__file__).parents[2]


def test_the_citation_names_the_version_and_the_five_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == freqformer.__version__
    assert citation["license"] == "Apache-2.0"
    papers = citation["references"]
    assert len({paper["title"] for paper in papers}) == 5
    for paper in papers:
        assert paper["type"] in {"article", "conference-paper", "software"}
        assert all(author["family-names"] for author in paper["authors"])
    first = {paper["authors"][0]["family-names"] for paper in papers}
    assert first == {"Rao", "Patro", "Tatsunami", "Ly"}


def test_the_licence_is_the_apache_licence():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text


def test_the_changelog_has_this_version():
    assert f"## {freqformer.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_hooks_before_a_commit_are_programs_of_the_environment():
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    installed = (ROOT / "pyproject.toml").read_text() + (ROOT / "Makefile").read_text()
    for hook in repositories[0]["hooks"]:
        program = shlex.split(hook["entry"])[0]
        if program.startswith(".venv/bin/"):
            assert f'"{Path(program).name}>=' in installed
            assert f"$(BIN)/{Path(program).name}" in installed
        else:
            assert shutil.which(program)


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_of_the_pages_at_the_root_lead_somewhere(name):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / name).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []
