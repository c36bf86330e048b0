"""Builds pages of the site from Markdown files of the repository outside docs/, and follows links to them.

In the repository every link is relative, so that it works wherever the file is read. On the site, a link to a
page or a picture leads there, and a link to any other file becomes its text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/GPU_DEBT.md": "gpu-debt.md",
    "benchmarks/peers/README.md": "peers.md",
}
"""Where files outside docs/ stand on the site."""
PICTURES = "benchmarks/results"
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\[\]]*)\]\((?P<target>[^()\s#]+)(?P<anchor>#[^()\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and pictures that are not in docs/."""
    root = Path(config.config_file_path).parent
    for source, uri in PAGES.items():
        files.append(File.generated(config, uri, content=(root / source).read_text()))
    for picture in sorted((root / PICTURES).glob("*.png")):
        files.append(File.generated(config, f"pictures/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links between files of the repository into links between pages of the site."""
    root = Path(config.config_file_path).parent
    sources = {uri: source for source, uri in PAGES.items()}
    folder = posixpath.dirname(sources.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def follow(link: re.Match[str]) -> str:
        if "://" in link["target"]:
            return link[0]
        path = posixpath.normpath(posixpath.join(folder, link["target"]))
        if not (root / path).exists():
            raise PluginError(f"{page.file.src_uri} links to {link['target']}, which does not exist")
        if path in PAGES:
            uri = PAGES[path]
        elif path.startswith(f"{PICTURES}/") and path.endswith(".png"):
            uri = f"pictures/{posixpath.basename(path)}"
        elif path.startswith("docs/"):
            uri = path.removeprefix("docs/")
        else:
            return link["text"]
        return f"{link['image']}[{link['text']}]({uri}{link['anchor'] or ''})"

    return LINK.sub(follow, markdown)
