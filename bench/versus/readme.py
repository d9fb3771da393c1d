"""Puts a table between two marks of a Markdown file. Pure but for `update`."""

from pathlib import Path

BEGIN = "<!-- bench/versus/report writes from here -->"
END = "<!-- bench/versus/report writes to here -->"


class MarkError(Exception):
    """The marks are missing, or not a pair."""


def between(text: str, content: str) -> str:
    """The text with everything between the marks replaced."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise MarkError(f"there must be one line '{BEGIN}' and, after it, one '{END}'")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{content.strip()}\n\n{END}{after}"


def update(path: Path, content: str) -> bool:
    """Whether the file changed. Raises MarkError."""
    old = path.read_text()
    new = between(old, content)
    if new != old:
        path.write_text(new)
    return new != old
