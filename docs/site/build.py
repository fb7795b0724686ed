"""docs/ as a site: ``python docs/site/build.py`` writes build/site/; its index.html opens from the disk, too.

Needs ``pip install '.[docs]'`` and no network, neither to build nor to read. The files stay where readers of
the repository expect them, with links that work there. Here they are laid out as pages below build/pages/:
those of docs/, the README as the front page, others from outside docs/, and a reference of ``vidssl.api``
that its docstrings fill. What MkDocs then warns of, a link that leads nowhere for one, is an error.
"""

import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path

from vidssl import api

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "build" / "pages"
# file outside docs/ -> its place in the site, beside those of docs/
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "evaluation/README.md": "evaluation/README.md",
    "tokenizers/README.md": "tokenizers/README.md",
    "LICENSE": "LICENSE",
    "CITATION.cff": "CITATION.cff",
}
# page of the reference -> modules whose public names it holds
REFERENCE = {
    "training": ("train", "build", "engine", "config", "errors"),
    "using": ("use", "weights"),
    "interfaces": ("interfaces",),
    "objectives": ("objectives",),
    "backbones": ("backbones",),
    "tokenizers": ("tokenizers",),
    "maskers": ("maskers",),
    "data": ("data",),
    "evaluation": ("evaluators",),
}


_OVERVIEW = (
    "`from vidssl import api as v` has all of these. Each stands in a line that can be run: parts in "
    "[every_part.py](../examples/every_part.py), sources in "
    "[every_source.py](../examples/every_source.py), and more in [Using a run](../using_a_run.md)."
)
KEPT = (".md", ".svg", ".png", ".json", ".ipynb")


def files() -> dict[str, str]:
    """Files of the repository that the site has, and the place of each in it."""
    ours = (path for path in (ROOT / "docs").rglob("*") if path.suffix in KEPT)
    ours = (*ours, *(ROOT / "docs" / "examples").glob("*.*"), *(ROOT / "docs" / "site").glob("*.[cj]s*"))
    inside = sorted(path.relative_to(ROOT).as_posix() for path in ours)
    return {name: name.removeprefix("docs/") for name in inside} | OUTSIDE


def slug(heading: str) -> str:
    """The anchor that GitHub, and the site, give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def page(source: str, places: dict[str, str]) -> str:
    """The text of a Markdown file, its relative links as they have to be in the site.

    A link whose text is the file's name gets the title of that page, or part of it, for a text.
    """
    folder, here = posixpath.dirname(source), posixpath.dirname(places[source])

    def moved(match: re.Match[str]) -> str:
        text, link, anchor = match.groups()
        target = posixpath.normpath(posixpath.join(folder, link))
        if target not in places:  # code such as parts[0](clip), or a link that MkDocs reports
            return match[0]
        if text.endswith(".md"):
            headings = re.findall(r"^#+ (.*)", (ROOT / target).read_text(encoding="utf-8"), re.MULTILINE)
            named = (each.replace("`", "") for each in headings if not anchor or "#" + slug(each) == anchor)
            text = next(named, text)
        return f"[{text}]({posixpath.relpath(places[target], here or '.')}{anchor or ''})"

    text = (ROOT / source).read_text(encoding="utf-8")
    if source in ("README.md", "docs/results.md"):  # their tables need the room
        text = "---\nhide: [navigation]\n---\n" + text
    return re.sub(r"\[([^][]*)\]\(([^)#:\s]+)(#[^)]*)?\)", moved, text)


def public_names() -> dict[str, dict[str, str]]:
    """For each page of the reference: a name of ``vidssl.api``, and the full name of what it stands for."""
    found: dict[str, dict[str, str]] = {title: {} for title in REFERENCE}
    for name, made in vars(api).items():
        if not name.startswith("_"):
            top = made.__module__.split(".")[1]
            title = next(title for title, tops in REFERENCE.items() if top in tops)
            found[title][name] = f"{made.__module__}.{made.__qualname__}"
    return found


def reference() -> dict[str, str]:
    """Pages of the reference, and what stands in them; mkdocstrings fills in the docstrings."""
    pages, overview = {}, ["# Python", "", _OVERVIEW, ""]
    for title, names in public_names().items():
        parts = [f"::: {full}\n    options: {{heading: {name}}}" for name, full in names.items()]
        pages[f"api/{title}.md"] = "\n\n".join([f"# {title.capitalize()}", *parts]) + "\n"
        links = ", ".join(f"[`{name}`][{full}]" for name, full in names.items())
        overview += [f"**[{title.capitalize()}]({title}.md)**: {links}", ""]
    return pages | {"api/index.md": "\n".join(overview)}


def lay_out(folder: Path) -> None:
    """Write all pages, and the files they show or link to, below a folder that is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    places = files()
    for source, place in places.items():
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.endswith(".md"):
            target.write_text(page(source, places), encoding="utf-8")
        else:
            shutil.copyfile(ROOT / source, target)
    for place, text in reference().items():
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    lay_out(PAGES)
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(ROOT / "docs" / "site" / "mkdocs.yml")]
    sys.exit(subprocess.run([*command, *sys.argv[1:]], check=False).returncode)
