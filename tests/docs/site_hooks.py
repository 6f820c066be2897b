"""MkDocs hooks: links to files outside ``docs/`` lead to pages that show those files.

On GitHub ``../examples/masks/causal.py`` is the file itself. The site has no such file, so the hook
adds a page ``source/examples/masks/causal.py.html`` with its text, once for all links to it. What
cannot be shown (a folder, something large or binary) stays as its name in code type. A link to
something that is not there is left as it is, and MkDocs warns about it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LINK = re.compile(r"(?<!!)\[(?P<text>[^\]\n]+)\]\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
FENCE = re.compile(r"^(?:```.*?^```|<pre>.*?</pre>)", re.DOTALL | re.MULTILINE)
MOST_BYTES = 100_000
LANGUAGES = {".py": "python", ".json": "json", ".toml": "toml", ".yml": "yaml", ".h": "c"}
FOLDER = "source"


def outside(page: str, target: str) -> str | None:
    """Where a link of a page leads, from the root of the repository; None if it stays in docs/."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    return None if path.startswith(("docs/", "..")) else path


def shown(root: Path, path: str) -> bool:
    """Whether a page can show the file."""
    file = root / path
    if not file.is_file() or file.stat().st_size > MOST_BYTES:
        return False
    return b"\0" not in file.read_bytes()


def without_fences(text: str) -> str:
    return FENCE.sub("", text)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for every file outside docs/ that a page links to."""
    root = Path(config.config_file_path).parent
    wanted: set[str] = set()
    for file in files.documentation_pages():
        for match in LINK.finditer(without_fences(file.content_string)):
            path = outside(file.src_uri, match["target"])
            if path is not None and shown(root, path):
                wanted.add(path)
    for path in sorted(wanted):
        files.append(File.generated(config, f"{FOLDER}/{path}.md", content=source_page(root, path)))
    return files


def source_page(root: Path, path: str) -> str:
    """Markdown: a file's text, left out of the search."""
    text = (root / path).read_text(encoding="utf-8").rstrip("\n")
    language = LANGUAGES.get(Path(path).suffix, "text")
    front = f"---\ntitle: {path}\nsearch:\n  exclude: true\n---\n"
    return f"{front}# {path}\n\n````{language}\n{text}\n````\n"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to files outside docs/ into links to their pages, or into their names."""
    root = Path(config.config_file_path).parent

    def link(match: re.Match[str]) -> str:
        path = outside(page.file.src_uri, match["target"])
        if path is None or not (root / path).exists():
            return match[0]
        if files.get_file_from_path(f"{FOLDER}/{path}.md") is None:
            text = match["text"]
            return text if "`" in text else f"`{text}`"
        there = posixpath.relpath(
            f"{FOLDER}/{path}.md", posixpath.dirname(page.file.src_uri) or "."
        )
        return f"[{match['text']}]({there})"

    if page.file.src_uri.startswith(f"{FOLDER}/"):
        return markdown
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [LINK.sub(link, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(link, markdown[end:])])
