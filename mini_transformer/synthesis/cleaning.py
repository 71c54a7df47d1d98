"""What is taken off an answer before it is judged: thoughts, chatter and markup around the text itself."""

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
_LABEL = re.compile(r"^(?:titre|title) *: *", re.IGNORECASE | re.MULTILINE)
# Labels that stand alone where only text should: "Strophe 2 :", "Premier quatrain", "Fable :", "(Fin)".
_ALONE = re.compile(
    r"^\W*(?:(?:premi(?:er|ère)|second|seconde|deuxième|troisième|quatrième|dernier|dernière) +)?"
    r"(?:strophe|quatrain|tercet|couplet|paragraphe|vers|partie|fable|poème|conte|dialogue|texte|fin)"
    r"(?: *\d+| +[ivx]+)?\W*$\n?",
    re.IGNORECASE | re.MULTILINE,
)

_OPENERS = (
    r"bien sûr|bien entendu|certainement|avec (?:grand )?plaisir|d'accord|volontiers|absolument|voici|voilà|tenez|parfait"
    r"|entendu|sure|certainly|of course|here(?:'s| is)|as requested|pour répondre|en réponse|je vous propose|je te propose"
    r"|ci-dessous"
)
_TEXT_WORDS = (
    r"fables?|poèmes?|contes?|dialogues?|moralités?|textes?|vers|sonnets?|histoires?|récits?|versions?|propositions?"
    r"|demande|demandé|poem|story|tale|verses|plaisir|sûr"
)
# A first paragraph that speaks of the text instead of being it.
_BEFORE = re.compile(rf"\A(?:{_OPENERS})\b(?=[^\n]{{0,300}}(?:\b(?:{_TEXT_WORDS})\b|[!:] *$))[^\n]*\n+", re.I | re.M)
_AFTER_START = re.compile(
    r"^\W*(?:n'hésite[zs]?\b|j'espère|si (?:vous|tu) (?:souhait|voul|désir|avez|as|veux)|note\b|remarque\b|explication"
    r"|analyse\b|commentaire|(?:cette?|ce) (?:fable|poème|texte|conte|dialogue|moralité) \w+|dans (?:cette?|ce) "
    r"(?:fable|poème|texte|conte|dialogue)|à travers (?:cette?|ce) (?:fable|poème|texte|conte|dialogue)|let me know"
    r"|i hope|feel free|this (?:fable|poem|story)|souhaitez-vous|voulez-vous que je|dites-moi si|bonne lecture"
    r"|\(?(?:nombre de mots|\d+ mots|word count))",
    re.IGNORECASE,
)


def plain(text: str) -> str:
    """A text as one document: plain line ends, no control characters, no gap that would part it, nothing around it."""
    text = unicodedata.normalize("NFC", text.encode("utf-8", "ignore").decode("utf-8"))
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n")
    text = _CONTROL.sub(lambda match: "" if match[0] > "\u2000" else " ", text)
    text = "".join(c for c in text if c == "\n" or unicodedata.category(c) != "Cc")
    lines = [line.rstrip() for line in text.split("\n")]
    return _GAP.sub("\n\n", "\n".join(lines)).strip("\n")


def clean(text: str) -> str:
    """The text itself out of a model's answer: no thoughts, no markup, nothing said before or after it."""
    text = _SPECIAL.sub("", _THOUGHT_END.sub("", _THOUGHT.sub("", plain(text))))
    for markup in (_FENCE, _RULE, _HEADING, _QUOTE):
        text = markup.sub("", text)
    for _ in range(2):  # bold inside of italics
        text = _EMPHASIS.sub(r"\2", text)
    text = _LABEL.sub("", _BULLET.sub("", text))
    text = plain(text).strip()
    while shorter := _BEFORE.match(text):
        text = text[shorter.end() :].strip()
    paragraphs = text.split("\n\n")
    after = next((i for i, p in enumerate(paragraphs) if i and _AFTER_START.match(p)), len(paragraphs))
    text = _ALONE.sub("", "\n\n".join(paragraphs[:after]))
    return _without_outer_quotes(plain(text).strip())


def _without_outer_quotes(text: str) -> str:
    for opening, closing in (("«", "»"), ('"', '"'), ("“", "”")):
        inner = text[1:-1]
        if text.startswith(opening) and text.endswith(closing) and opening not in inner and closing not in inner:
            return inner.strip()
    return text
