"""Tokenizers that others made: a folder with a `tokenizer.json`, or a name on the Hugging Face Hub."""

from pathlib import Path

from mini_transformer.errors import UserError
from mini_transformer.text.tokenizer import FILE, Tokenizer, prepend_eot

# What a tokenizer must give back unchanged to be of use here; `normalizers` and prefix spaces do not.
PROBE = "L'été — cœur e\u0301\u0301 ﬁ ½ Å\u212b 日本 🦊\n\n\n  deux\t espaces \x00\x1f\u00a0\u2028 ."


def ready_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a folder, a file or a name on the Hub (downloaded once, then from its cache).

    Raises `UserError` if there is none, if it has no `<|endoftext|>`, or if text does not come back from it unchanged.
    """
    path = _find(name)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"--tokenizer: {path}: cannot be read ({error.strerror})") from None
    try:
        tokenizer = Tokenizer.from_json(content, str(path))
    except UserError as error:
        raise UserError(f"--tokenizer: {error}") from None
    prepend_eot(tokenizer.backend, tokenizer.eot_id)
    for text in (PROBE, f" {PROBE}"):
        if tokenizer.decode(tokenizer.encode(text).tolist()) != text:
            raise UserError(
                f"--tokenizer: {name}: text does not come back from it unchanged (it normalises, or adds a space): "
                "take another one"
            )
    return tokenizer


def _find(name: str) -> Path:
    path = Path(name)
    if path.is_dir():
        if not (path / FILE).is_file():
            raise UserError(f"--tokenizer: {path}: the folder holds no {FILE}")
        return path / FILE
    if path.is_file():
        return path
    # a name of the Hub has one slash at most, and does not begin like a path
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise UserError(
            f"--tokenizer: {name!r}: no such folder; expected char, bpe, a folder with {FILE} or a Hub name"
        )
    return _download(name)


def _download(name: str) -> Path:
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(name, FILE))
    except errors.LocalEntryNotFoundError:
        why = "the Hub cannot be reached and it is not in the cache; check the connection, or name a folder"
    except errors.GatedRepoError:
        why = "this tokenizer wants its terms accepted on the Hub first (then: hf auth login)"
    except errors.RepositoryNotFoundError:
        why = "neither a folder here nor a public name on the Hub"
    except errors.EntryNotFoundError:
        why = f"there is no {FILE} under that name on the Hub"
    except (errors.HFValidationError, errors.HfHubHTTPError, OSError) as error:
        why = f"not found on the Hub ({type(error).__name__})"
    raise UserError(f"--tokenizer: {name}: {why} (expected char, bpe, a folder with {FILE} or a Hub name)")
