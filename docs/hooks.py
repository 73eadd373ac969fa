"""What MkDocs does not do itself: pages from other files, links that leave this folder, mathematics without scripts.

- README.md is the site's first page; the pages at the repository's root and those of the API are made here.
- A link to a file of the repository gets a copy of it; a link to a folder becomes plain text.
- TeX becomes MathML, which browsers show by themselves.
"""

import ast
import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
"""Pages outside this folder, and their names in the site."""

_LINK = re.compile(r"(!?)\[([^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*)\]\(([^()\s]+)\)")
_CODE = re.compile(r"^( *)(```+).*?^\1\2 *$|(`+).+?\3", re.MULTILINE | re.DOTALL)
_TEX = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that are no files of this folder, and what the pages link to outside it."""
    sources = {ROOT / name: target for name, target in ROOT_PAGES.items() if (ROOT / name).is_file()}
    for source, target in sources.items():
        files.append(File.generated(config, target, content=source.read_text()))
    nav = _pages(config.nav)
    for page in nav:
        if page.startswith("api/"):
            files.append(File.generated(config, page, content=_api_page(page, nav)))
    pages = {ROOT / "docs" / page.src_uri: page.src_uri for page in files.documentation_pages()}
    for path in {outside for source in (*pages, *sources) if source.is_file() for outside in _outside(source)}:
        files.append(File.generated(config, _copy(path), content=path.read_bytes()))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Let links that leave this folder lead to what the site has of it."""
    homes = {target: ROOT for target in ROOT_PAGES.values()}
    folder = homes.get(page.file.src_uri, (ROOT / "docs" / page.file.src_uri).parent)
    here = posixpath.dirname(page.file.src_uri)

    def link(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return match.group()
        found = (folder / path).resolve()
        if found.is_dir():
            return text
        return f"{mark}[{text}]({posixpath.relpath(_in_site(found), here or '.')}{hash_}{anchor})"

    return _outside_code(markdown, lambda text: _LINK.sub(link, text))


def on_page_content(content: str, **_: Any) -> str:
    """Turn TeX into MathML."""

    def math(match: re.Match[str]) -> str:
        tex = html.unescape(match.group(2)).strip()
        return convert(tex[2:-2].strip(), display="block" if match.group(1) == "div" else "inline")

    return _TEX.sub(math, content)


def _pages(nav: Any) -> list[str]:
    """The pages of a navigation, however deep."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in _pages(part)]


def _api_page(page: str, all_pages: list[str]) -> str:
    """The page of a module: what it says of itself, then each name that it exports, where it is defined."""
    module = page.removeprefix("api/").removesuffix(".md")
    package = "freqformer" if module == "freqformer" else f"freqformer.{module}"
    # What the package exports of a module that has a page is a link to there.
    modules = {f"freqformer.{Path(other).stem}" for other in all_pages if other.startswith("api/")}
    elsewhere = {home for other in modules - {"freqformer.freqformer"} for home in _exported(other).values()}
    links, objects = [], []
    for name, home in _exported(package).items():
        if package == "freqformer" and home in elsewhere:
            links.append(f"- [`{name}`][{home}]")
        else:
            objects.append(f"::: {home}\n    options:\n      show_root_heading: true")
    about = f"::: {package}\n    options:\n      members: false\n      show_root_toc_entry: false"
    return "\n\n".join([f"# {package}", about, "\n".join(links), *objects]) + "\n"


def _exported(package: str) -> dict[str, str]:
    """What a package exports, and the full name of each."""
    names = _names(package)
    return {name: _home(package, name) for name in sorted(names, key=str.lower)}


def _names(package: str) -> list[str]:
    for name, value in _assigned(package):
        if name == "_PUBLIC":
            return list(ast.literal_eval(value))
        if name == "__all__":
            return ast.literal_eval(value)
    raise ValueError(f"{package} has no __all__")


def _home(package: str, name: str) -> str:
    """The full name of what a package exports, where it is defined; a module may have a function's name."""
    tree = _tree(package)
    for node in tree.body if tree else ():
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package.rsplit(".", node.level - 1)[0]
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _home(f"{above}.{node.module}", alias.name)
    # What is imported on first use.
    lazy = {key: home for key, value in _assigned(package) if key == "_PUBLIC" for key, home in _items(value)}
    return _home(*lazy[name]) if name in lazy else f"{package}.{name}"


def _items(value: ast.expr) -> list[tuple[str, tuple[str, str]]]:
    return list(ast.literal_eval(value).items())


def _assigned(package: str) -> list[tuple[str, ast.expr]]:
    tree = _tree(package)
    nodes = [node for node in (tree.body if tree else ()) if isinstance(node, ast.Assign)]
    return [(node.targets[0].id, node.value) for node in nodes if isinstance(node.targets[0], ast.Name)]


def _tree(package: str) -> ast.Module | None:
    """A package's own file; None for a plain module."""
    path = ROOT / "src" / package.replace(".", "/") / "__init__.py"
    return ast.parse(path.read_text()) if path.is_file() else None


def _in_site(path: Path) -> str:
    """Where a file of the repository is in the site, from its root."""
    name = path.relative_to(ROOT).as_posix()
    return ROOT_PAGES.get(name) or (name.removeprefix("docs/") if name.startswith("docs/") else _copy(path))


def _copy(path: Path) -> str:
    return f"repository/{path.relative_to(ROOT).as_posix()}"


def _outside(source: Path) -> list[Path]:
    """The files outside this folder that a page links to."""
    found: list[Path] = []

    def collect(text: str) -> str:
        for _, _, target in _LINK.findall(text):
            path = (source.parent / target.partition("#")[0]).resolve()
            inside = path.is_relative_to(ROOT / "docs") or path.relative_to(ROOT).as_posix() in ROOT_PAGES
            if "://" not in target and path.is_file() and not inside:
                found.append(path)
        return text

    _outside_code(source.read_text(), collect)
    return found


def _outside_code(markdown: str, change: Any) -> str:
    """Change what is no code."""
    parts: list[str] = []
    end = 0
    for code in _CODE.finditer(markdown):
        parts += [change(markdown[end : code.start()]), code.group()]
        end = code.end()
    return "".join([*parts, change(markdown[end:])])
