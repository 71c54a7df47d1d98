"""What is taken off an answer before it is checked: thoughts, talk and markup around the text itself."""

import html
import re
import tomllib
import unicodedata
from importlib import resources

_FILE = resources.files("mini_transformer.synthesis") / "patterns.toml"
PATTERNS: dict[str, re.Pattern[str]] = {
    name: re.compile("".join(map(str.strip, pattern.splitlines())), re.IGNORECASE | re.MULTILINE)
    for group in tomllib.loads(_FILE.read_text(encoding="utf-8")).values()
    for name, pattern in group.items()
}
_CONTROL = re.compile(r"[^\S\n ]|[\u200b-\u200f\u2028\u2029\u2060\ufeff]")
_GAP = re.compile(r"\n(?:\n)+")


def plain(text: str) -> str:
    """A text as one document: plain line ends, no control characters, no gap that would split it, nothing around it."""
    text = unicodedata.normalize("NFC", text.encode("utf-8", "ignore").decode("utf-8"))
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n")
    text = _CONTROL.sub(lambda match: "" if match[0] > "\u2000" else " ", text)
    text = "".join(c for c in text if c == "\n" or unicodedata.category(c) != "Cc")
    return _GAP.sub("\n\n", "\n".join(line.rstrip() for line in text.split("\n"))).strip("\n")


def clean(text: str) -> str:
    """The text itself out of a model's answer: no thoughts, no markup, nothing said before or after it."""
    text = plain(html.unescape(text))
    for name in ("thought", "thought_end", "special", "fence", "rule", "heading", "quote"):
        text = PATTERNS[name].sub("", text)
    for _ in range(2):  # bold inside of italics
        text = PATTERNS["emphasis"].sub(r"\2", text)
    text = PATTERNS["label"].sub("", PATTERNS["bullet"].sub("", text))
    text = plain(text).strip()
    paragraphs = text.split("\n\n")
    while len(paragraphs) > 1 and _is_before(paragraphs[0]):
        del paragraphs[0]
    first, _, rest = paragraphs[0].partition("\n")
    if rest and first.rstrip().endswith(":") and _is_before(first):
        paragraphs[0] = rest
    after = next((i for i, paragraph in enumerate(paragraphs) if i and _is_after(paragraph)), len(paragraphs))
    text = PATTERNS["alone"].sub("", "\n\n".join(paragraphs[:after]))
    text = plain(text).strip()
    for opening, closing in (("«", "»"), ('"', '"'), ("“", "”")):
        inner = text[1:-1]
        if text.startswith(opening) and text.endswith(closing) and opening not in inner and closing not in inner:
            return inner.strip()
    return text


def _is_before(paragraph: str) -> bool:
    if "\n" in paragraph:
        return False
    if civil := PATTERNS["civil"].match(paragraph):
        rest = paragraph[civil.end() :]
        return len(rest) < 30 or rest.rstrip().endswith(":") or PATTERNS["the_text"].search(rest) is not None
    return PATTERNS["presenting"].match(paragraph) is not None and PATTERNS["the_text"].search(paragraph) is not None


def _is_after(paragraph: str) -> bool:
    like_prose = "\n" not in paragraph or max(map(len, paragraph.split("\n"))) > 90
    closing = like_prose and PATTERNS["closing"].match(paragraph) and PATTERNS["about"].search(paragraph)
    return bool(closing or PATTERNS["note"].match(paragraph))
