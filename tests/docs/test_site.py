"""The site of the docs: it builds strictly, is complete, and needs no network; the table of models is the code's."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from freqformer.models import published
from freqformer.tools import list_models

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "docs/model-table.md").read_text()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site's folder."""
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """The HTML of each page by its name."""
    return {path.relative_to(site).as_posix(): path.read_text() for path in site.rglob("*.html")}


@pytest.mark.slow
def test_every_page_of_the_docs_is_in_the_site(pages):
    ours = {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")}
    assert ours | {"index.html", "api/freqformer.html", "api/ops.html"} <= set(pages)


@pytest.mark.slow
def test_a_page_fetches_nothing_from_another_host(site, pages):
    fetched = re.compile(
        r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//|<link\b[^>]*href=["']?https?://"""
    )
    assert [name for name, text in pages.items() if fetched.search(text)] == []
    styles = [path for path in site.rglob("*.css") if re.search(r"url\(['\"]?(?:https?:)?//", path.read_text())]
    assert styles == []


@pytest.mark.slow
def test_what_a_page_shows_and_links_to_is_there(site, pages):
    missing = []
    for name, text in pages.items():
        if name == "404.html":
            continue
        for target in re.findall(r"""\b(?:src|href)=["']?([^"'\s>]+)""", text):
            path = target.partition("#")[0].partition("?")[0]
            if path and not re.match(r"[a-z]+:", path) and not (site / name).parent.joinpath(path).exists():
                missing.append((name, target))
    assert missing == []


@pytest.mark.slow
def test_the_search_finds_words_without_a_server(site):
    index = json.loads((site / "search/search_index.json").read_text())
    assert any("Hermitian" in entry["text"] or "resampl" in entry["text"] for entry in index["docs"])
    assert (site / "search/search_index.js").is_file()


@pytest.mark.slow
def test_every_public_function_of_the_operations_has_its_page(pages):
    for name in ("freqformer.ops.global_filter.global_filter", "freqformer.ops.dynamic_filter.dynamic_filter"):
        assert f'id="{name}"' in pages["api/ops.html"]
    assert "freqformer.factory.create_model" in pages["api/freqformer.html"]


@pytest.mark.slow
def test_no_formula_is_left_as_tex(pages):
    assert [name for name, text in pages.items() if 'class="arithmatex"' in text] == []


def model_table():
    """The script that writes the table."""
    spec = importlib.util.spec_from_file_location("model_table", ROOT / "docs/model_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_names_every_model_and_what_is_printed_of_it():
    rows = {
        cells[1].strip(" `"): cells for cells in (line.split("|") for line in TABLE.splitlines()) if len(cells) == 10
    }
    names = model_table().names()
    assert [name for name in rows if name in names] == names
    assert len(names) == 38
    for name in names:
        printed = published(name)
        told = [cell.strip() for cell in rows[name]]
        expected = ["", "", ""] if printed is None else [printed.parameters or "", printed.flops or "", printed.top1]
        assert told[4] == expected[0]
        assert told[6] == expected[1]
        assert told[8] == ("" if expected[2] in (None, "") else str(expected[2]))


@pytest.mark.parametrize("name", ["gfnet_ti", "freqformer_n", "gfnet_h_n"])
def test_a_line_of_the_table_is_what_is_counted(name):
    (row,) = list_models(name)
    assert model_table().line(row) in TABLE
