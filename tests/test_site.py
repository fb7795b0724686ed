"""docs/ as pages of a site: all are in its navigation, their links lead somewhere, and it builds."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.site.build import ROOT, files, page, public_names, reference, slug
from vidssl import api

MARKDOWN = [path for path in files() if path.endswith(".md")]
CONFIG = ROOT / "docs" / "site" / "mkdocs.yml"


class Loader(yaml.SafeLoader):
    """Reads the settings of MkDocs, and leaves out what is Python in them."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)


def leaves(nav: Any) -> list[str]:
    """Pages of a navigation in their order."""
    if isinstance(nav, str):
        return [nav]
    return [leaf for each in (nav.values() if isinstance(nav, dict) else nav) for leaf in leaves(each)]


@cache
def anchors(path: Path) -> set[str]:
    """Those that GitHub, and the site, give the headings of a page."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {slug(heading) for heading in re.findall(r"^#+ +(.*)$", text, re.MULTILINE)}


def test_every_page_stands_in_the_navigation_once() -> None:
    nav = leaves(yaml.load(CONFIG.read_text(encoding="utf-8"), Loader)["nav"])
    assert sorted(nav) == sorted([*(files()[name] for name in MARKDOWN), *reference()])


def test_relative_links_and_anchors_lead_somewhere() -> None:
    found, astray = 0, []
    for name in [*MARKDOWN, *(path.relative_to(ROOT).as_posix() for path in ROOT.glob("tests/**/*.md"))]:
        text = (ROOT / name).read_text(encoding="utf-8")
        text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        for link, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]*))?\)", text):
            target = (ROOT / name).parent / link if link else ROOT / name
            found += 1
            if not target.exists() or (anchor and anchor not in anchors(target.resolve())):
                astray.append(f"{name}: {link}#{anchor}")
    assert found > 60
    assert astray == []


def test_links_are_moved_with_their_pages() -> None:
    text = page("README.md", files())
    assert "](methods.svg)" in text
    assert "[Commands and parts](commands.md)" in text
    assert "[Papers](commands.md#papers)" in text
    assert "[Contributing](../CONTRIBUTING.md)" in page("docs/tutorials/add_a_part.md", files())
    assert "[Prepare them](../data.md#vidssl-data-prepare)" in page("docs/data/howto100m.md", files())


def test_the_reference_has_every_public_name() -> None:
    names = [name for page in public_names().values() for name in page]
    assert sorted(names) == sorted(name for name in vars(api) if not name.startswith("_"))
    text = "\n".join(reference().values())
    assert "::: vidssl.objectives.bevt.BEVT\n" in text
    assert "::: vidssl.data.sources.official.videos.UCF101\n    options: {heading: ucf101}" in text


@pytest.mark.slow
def test_it_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    for needed in ("material", "mkdocstrings_handlers.python"):
        pytest.importorskip(needed)
    command = [sys.executable, str(ROOT / "docs" / "site" / "build.py"), "--site-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    row = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| BEVT"))
    front = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert all(f">{cell.strip()}<" in front for cell in re.sub(r"\*\*", "", row).split("|")[1:3])
    assert "methods.svg" in front
    pages = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.html")}
    assert pages >= {"results.html", "papers/bevt.html", "api/objectives.html"}
    assert len(pages) == len(MARKDOWN) + len(reference()) + 1  # 404.html
    loaded = r"<(?:script|img|iframe|link)\b[^>]*(?:src|href)=\"?https?:[^>]*"
    assert [name for name in pages if re.search(loaded, (tmp_path / name).read_text(encoding="utf-8"))] == []
    documented = (tmp_path / "api" / "objectives.html").read_text(encoding="utf-8")
    assert 'id="vidssl.objectives.svt.SVT"' in documented
    index = json.loads((tmp_path / "search" / "search_index.json").read_text(encoding="utf-8"))
    assert any("rankme" in entry["text"] for entry in index["docs"])
