"""The tokenizer that the settings ask for: trained on the texts, or a ready-made one from a folder or the Hub."""

from collections.abc import Iterable
from pathlib import Path

from mini_transformer.checksums import check
from mini_transformer.config import DEFAULT_VOCAB_SIZE
from mini_transformer.errors import UserError
from mini_transformer.text.tokenizer import TOKENIZER_FILE, Tokenizer, prepend_eot

# A text that many tokenizers do not give back unchanged: those with a normalizer, or with a space put in front.
PROBE = "L'été — cœur e\u0301\u0301 ﬁ ½ Å\u212b 日本 🦊\n\n\n  deux\t espaces \x00\x1f\u00a0\u2028 ."


def make_tokenizer(kind: str, vocab_size: int, texts: Iterable[str], progress: bool = False) -> Tokenizer:
    """Train a "char" or "bpe" tokenizer (of `vocab_size` tokens) on texts, or `load_pretrained` and read no text."""
    if kind == "char":
        return Tokenizer.from_characters(texts)
    if kind == "bpe":
        return Tokenizer.train_bpe(texts, vocab_size or DEFAULT_VOCAB_SIZE, progress)
    return load_pretrained(kind)


def load_pretrained(name: str) -> Tokenizer:
    """The tokenizer of a folder, a file or a name on the Hugging Face Hub (downloaded once, then from its cache).

    Raises `UserError` if there is none, if it has no `<|endoftext|>`, or if text does not round-trip unchanged.
    """
    path = _find(name)
    try:
        check(path)
        tokenizer = Tokenizer.from_json(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"`tokenizer`: {path}: cannot be read ({error.strerror})") from None
    except UserError as error:
        raise UserError(f"`tokenizer`: {error}") from None
    prepend_eot(tokenizer.backend, tokenizer.eot_id)
    try:
        tokenizer.encode_batch([PROBE, f" {PROBE}"])
    except UserError:
        why = "text does not come back from it unchanged (it normalises, or adds a space): take another one"
        raise UserError(f"`tokenizer`: {name}: {why}") from None
    return tokenizer


def _find(name: str) -> Path:
    """The `tokenizer.json` that a name means: here, or downloaded."""
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / TOKENIZER_FILE).is_file():
            raise UserError(f"`tokenizer`: {path}: the folder holds no {TOKENIZER_FILE}")
        return path / TOKENIZER_FILE
    expected = f"expected char, bpe, a folder with {TOKENIZER_FILE} or a Hub name"
    # a name of the Hub has at most one slash, and does not begin like a path
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise UserError(f"`tokenizer`: {name!r}: no such folder; {expected}")
    from huggingface_hub import errors, hf_hub_download, logging

    logging.set_verbosity_error()  # it tries several times, and says so each time
    try:
        return Path(hf_hub_download(name, TOKENIZER_FILE))
    except errors.LocalEntryNotFoundError:
        why = "the Hub cannot be reached and it is not in the cache; check the connection, or name a folder"
    except errors.GatedRepoError:
        why = "this tokenizer wants its terms accepted on the Hub first (then: hf auth login)"
    except errors.RepositoryNotFoundError:
        why = "neither a folder here nor a public name on the Hub"
    except errors.EntryNotFoundError:
        why = f"there is no {TOKENIZER_FILE} under that name on the Hub"
    except (errors.HFValidationError, errors.HfHubHTTPError, OSError) as error:
        why = f"not found on the Hub ({type(error).__name__})"
    raise UserError(f"`tokenizer`: {name}: {why} ({expected})")
