"""The tokenizer that the settings ask for: learnt from texts, or a ready one."""

from collections.abc import Iterable
from pathlib import Path

from mini_transformer.config import DEFAULT_VOCAB_SIZE, TextConfig
from mini_transformer.errors import UserError
from mini_transformer.files import replacing
from mini_transformer.text.pretrained import ready_tokenizer
from mini_transformer.text.tokenizer import FILE, Tokenizer


def make_tokenizer(settings: TextConfig, texts: Iterable[str], progress: bool = False) -> Tokenizer:
    """Learn a tokenizer from texts, which are not looked at for a ready one.

    Raises `UserError` if there is no such tokenizer, or it is of no use here.
    """
    if settings.tokenizer == "char":
        return Tokenizer.from_characters(texts)
    if settings.tokenizer == "bpe":
        return Tokenizer.train_bpe(texts, settings.vocab_size or DEFAULT_VOCAB_SIZE, progress)
    return ready_tokenizer(settings.tokenizer)


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer alone into a folder, which may be new. Raises `UserError` if that cannot be done."""
    if (folder / "run.json").exists():
        raise UserError(f"--out-dir: {folder} holds a run, whose tokenizer belongs to its model; take another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / FILE) as temporary:
            temporary.write_text(tokenizer.to_json(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out-dir: {folder} cannot be written ({error.strerror})") from None
