"""What is taken off an answer before it is checked: thoughts, talk and markup around the text itself."""

import html
import re
import unicodedata

_CONTROL = re.compile(r"[^\S\n ]|[\u200b-\u200f\u2028\u2029\u2060\ufeff]")
_GAP = re.compile(r"\n(?:\n)+")

_THOUGHT = re.compile(r"<(think|thinking|reasoning)>.*?(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_THOUGHT_END = re.compile(r"\A.*</(?:think|thinking|reasoning)>", re.DOTALL | re.IGNORECASE)
_SPECIAL = re.compile(r"<\|[a-z_]+\|>.*", re.DOTALL)
_FENCE = re.compile(r"^ *```.*$", re.MULTILINE)
_RULE = re.compile(r"^ *(?:[-*_] ?){3,}$", re.MULTILINE)
_HEADING = re.compile(r"^ *#{1,6} +", re.MULTILINE)
_QUOTE = re.compile(r"^> ?", re.MULTILINE)
_EMPHASIS = re.compile(r"(\*{1,3}|(?<!\w)_{1,3})(?=\S)([^*_\n]*?\S)\1(?!\w)")
_BULLET = re.compile(r"^ *[*•] +", re.MULTILINE)
_LABEL = re.compile(
    r"(?im)^(?:titre|title|(?:la )?moral(?:e|ité)?(?: (?:de (?:la|cette) fable|de l'histoire|du conte))?) *: *"
)
# Labels that stand alone where only text should: "Strophe 2 :", "Premier quatrain", "Fable :", "(Fin)".
_ALONE = re.compile(
    r"(?im)^[^\w\n]*(?:(?:premi(?:er|ère)|second|seconde|deuxième|troisième|quatrième|dernier|dernière) +)?"
    r"(?:strophe|quatrain|tercet|couplet|paragraphe|vers|partie|fable|poème|conte|dialogue|texte|fin"
    r"|moralité|morale)"
    r"(?: *\d+| +[ivx]+)?[^\w\n]*$\n?"
)

# A first paragraph that speaks to the one who asked, or presents the text.
_CIVIL = re.compile(
    r"(?i)(?:bien sûr|bien entendu|certainement|avec (?:grand )?plaisir|d'accord|volontiers|absolument|parfait|entendu"
    r"|très bien|sure|certainly|of course)\b"
)
_PRESENTING = re.compile(
    r"(?i)(?:voici|voilà|ci-dessous|pour répondre|en réponse|je (?:vous|te) propose|here(?:'s| is)|as requested)\b"
)
_THE_TEXT = re.compile(
    r"(?i)\b(?:fables?|poèmes?|contes?|dialogues?|moralités?|textes?|sonnets?|versions?|propositions?|poem|story|tale)\b"
)
# A last part that speaks of the text: always, if it has such a heading; else if it looks like prose about a text.
_NOTE = re.compile(
    r"(?i)[(\"]*(?:note|remarque|explications?|analyse|commentaire|traduction|nombre de mots|word count)\b[^\n:]{0,30}:"
    r"|\(?(?:nombre de mots|\d+ (?:mots|vers|syllabes)|word count)|\([^\n]*\brimes?\b[^\n]*\)\Z"
)
_CLOSING = re.compile(
    r"(?i)[(\"]*(?:n'hésite[zs]? pas|j'espère|si (?:vous|tu) |(?:cette?|ce|dans (?:cette?|ce)|à travers (?:cette?|ce)) "
    r"(?:fable|poème|texte|conte|dialogue|moralité|sonnet|histoire)\b|let me know|i hope|feel free|this (?:fable|poem"
    r"|story)|souhaitez-vous|voulez-vous que|dites-moi|bonne lecture)"
)
_ABOUT = re.compile(
    r"(?i)\b(?:fables?|poèmes?|contes?|dialogues?|moralités?|textes?|versions?|modifications?|modifier|ajuster|autres? "
    r"(?:chose|thèmes?|style)|besoin|questions?|poem|story|lecture)\b"
)


def plain(text: str) -> str:
    """A text as one document: plain line ends, no control characters, no gap that would split it, nothing around it."""
    text = unicodedata.normalize("NFC", text.encode("utf-8", "ignore").decode("utf-8"))
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n")
    text = _CONTROL.sub(lambda match: "" if match[0] > "\u2000" else " ", text)
    text = "".join(c for c in text if c == "\n" or unicodedata.category(c) != "Cc")
    lines = [line.rstrip() for line in text.split("\n")]
    return _GAP.sub("\n\n", "\n".join(lines)).strip("\n")


def clean(text: str) -> str:
    """The text itself out of a model's answer: no thoughts, no markup, nothing said before or after it."""
    text = _SPECIAL.sub("", _THOUGHT_END.sub("", _THOUGHT.sub("", plain(html.unescape(text)))))
    for markup in (_FENCE, _RULE, _HEADING, _QUOTE):
        text = markup.sub("", text)
    for _ in range(2):  # bold inside of italics
        text = _EMPHASIS.sub(r"\2", text)
    text = _LABEL.sub("", _BULLET.sub("", text))
    text = plain(text).strip()
    paragraphs = text.split("\n\n")
    while len(paragraphs) > 1 and _is_before(paragraphs[0]):
        del paragraphs[0]
    first, _, rest = paragraphs[0].partition("\n")
    if rest and first.rstrip().endswith(":") and _is_before(first):
        paragraphs[0] = rest
    after = next((i for i, paragraph in enumerate(paragraphs) if i and _is_after(paragraph)), len(paragraphs))
    text = _ALONE.sub("", "\n\n".join(paragraphs[:after]))
    return _without_outer_quotes(plain(text).strip())


def _is_before(paragraph: str) -> bool:
    if "\n" in paragraph:
        return False
    if civil := _CIVIL.match(paragraph):
        rest = paragraph[civil.end() :]
        return len(rest) < 30 or rest.rstrip().endswith(":") or _THE_TEXT.search(rest) is not None
    return _PRESENTING.match(paragraph) is not None and _THE_TEXT.search(paragraph) is not None


def _is_after(paragraph: str) -> bool:
    lines = paragraph.split("\n")
    like_prose = len(lines) == 1 or max(map(len, lines)) > 90
    closing = like_prose and _CLOSING.match(paragraph) is not None and _ABOUT.search(paragraph) is not None
    return closing or _NOTE.match(paragraph) is not None


def _without_outer_quotes(text: str) -> str:
    for opening, closing in (("«", "»"), ('"', '"'), ("“", "”")):
        inner = text[1:-1]
        if text.startswith(opening) and text.endswith(closing) and opening not in inner and closing not in inner:
            return inner.strip()
    return text
