"""Text to token ids and back: byte-level BPE in one `tokenizer.json` (Hugging Face `tokenizers`).

The character tokenizer is the BPE whose merges only build the characters of the training texts out of their UTF-8
bytes: a character is one token, and an unknown one falls back to pieces of its bytes, so that any text round-trips.
Being an ordinary byte-level BPE, it is read the same way by `transformers` and llama.cpp.
"""

import codecs
import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from mini_transformer.checksums import check, replacing_listed
from mini_transformer.config import MAX_VOCAB_SIZE
from mini_transformer.errors import UserError
from mini_transformer.files import write_json
from mini_transformer.text.char import CharacterTable, Tokens, character_ids, distinct_characters

EOT_TOKEN = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"
# The pre-tokenizer of GPT-4o and GPT-OSS (o200k): how text is split before merging; llama.cpp knows it as "gpt-4o".
# It never splits a character, so for the character tokenizer it changes nothing but how long the words to merge are.
PRE_TOKENIZER_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|"
    r"\s*[\r\n]+|"
    r"\s+(?!\S)|"
    r"\s+"
)
# Runs that are cut while BPE is learned, in a time quadratic in the longest word; text that people read has none.
LONG_RUNS = pre_tokenizers.Split(tokenizers.Regex(r"\w{500}|[^\w\s]{500}|\s{500}"), behavior="isolated")
# The printable character that represents each of the 256 bytes in a byte-level BPE (GPT-2's table).
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # ! to ~, ¡ to ¬, ® to ÿ
_OTHERS = iter(range(256, 512))
BYTE_SYMBOLS = [chr(byte if byte in _PRINTABLE else next(_OTHERS)) for byte in range(256)]
SYMBOL_BYTES = {symbol: byte for byte, symbol in enumerate(BYTE_SYMBOLS)}
_ONE_THREAD = threading.Lock()


def check_unicode(text: str) -> str:
    """The text itself. Raises `UserError` if it holds a lone surrogate, which no UTF-8 file can."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        where = f"(U+{ord(text[error.start]):04X}) at character {error.start}"
        raise UserError(f"the text holds a lone surrogate {where}; it is not valid Unicode text") from None
    return text


def byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    """Our pre-tokenizer, decoder and special token around a byte-level BPE, whose token 0 is `<|endoftext|>`."""
    backend = tokenizers.Tokenizer(model)
    split = pre_tokenizers.Split(tokenizers.Regex(PRE_TOKENIZER_PATTERN), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = decoders.ByteLevel()
    prepend_eot(backend, 0)
    backend.add_special_tokens([tokenizers.AddedToken(EOT_TOKEN, special=True, normalized=False)])
    return backend


def prepend_eot(backend: tokenizers.Tokenizer, eot_id: int) -> None:
    """Let other programs start their prompts as documents start in training: after `<|endoftext|>`."""
    template, special = f"{EOT_TOKEN} $A", [(EOT_TOKEN, eot_id)]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)


@contextmanager
def _panics() -> Iterator[None]:
    """Raise `UserError` where the library panics, as at a pattern of a stranger that takes too long to match.

    It also prints a trace of its own to standard error, past Python, which is kept away meanwhile, for one thread at a
    time: another one would take that for the terminal.
    """
    with _ONE_THREAD:
        nowhere, stderr = os.open(os.devnull, os.O_WRONLY), os.dup(2)
        os.dup2(nowhere, 2)
        try:
            yield
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # pyo3 gives no other way to know it
                raise
            raise UserError(f"{TOKENIZER_FILE}: the library fails with it ({error!s:.200})") from None
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            os.close(nowhere)


class Tokenizer:
    """Encodes and decodes with the tokenizer of one `tokenizer.json`."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Raises `UserError` if the tokenizer has no `<|endoftext|>` or is not byte-level BPE."""
        eot_id = backend.token_to_id(EOT_TOKEN)
        if eot_id is None:
            raise UserError(f"{TOKENIZER_FILE}: the tokenizer has no {EOT_TOKEN} token")
        self.eot_id: int = eot_id
        self.backend = backend
        backend.encode_special_tokens = True  # a literal <|endoftext|> in a text is text
        backend.no_truncation()
        backend.no_padding()
        self.vocab_size: int = max(backend.get_vocab().values()) + 1
        if self.vocab_size > MAX_VOCAB_SIZE:
            raise UserError(f"{TOKENIZER_FILE}: a token has the id {self.vocab_size - 1}, beyond our {MAX_VOCAB_SIZE}")
        self.dtype = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32
        self._bytes = self._token_bytes()
        plain = backend.normalizer is None and self.vocab_size <= np.iinfo(self.dtype).max
        ids = character_ids(self._bytes) if plain else None
        self._characters = CharacterTable(ids, self.dtype, self._encode_with_library) if ids else None

    @classmethod
    def from_characters(cls, texts: Iterable[str]) -> "Tokenizer":
        """The character tokenizer of some texts. Token ids: `<|endoftext|>`, the 256 bytes, then the merges."""
        vocabulary = {EOT_TOKEN: 0} | {symbol: byte + 1 for symbol, byte in SYMBOL_BYTES.items()}
        merges = []
        for character in distinct_characters(map(check_unicode, texts)):
            symbols = [BYTE_SYMBOLS[byte] for byte in character.encode("utf-8")]
            for prefix, symbol in zip(accumulate(symbols), symbols[1:], strict=False):
                if prefix + symbol not in vocabulary:
                    vocabulary[prefix + symbol] = len(vocabulary)
                    merges.append((prefix, symbol))
        return cls(byte_level(models.BPE(vocab=vocabulary, merges=merges)))

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocab_size: int, progress: bool = False) -> "Tokenizer":
        """Byte-level BPE of at most `vocab_size` tokens. Token ids: `<|endoftext|>`, the 256 bytes, then the merges."""
        backend = byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=[EOT_TOKEN], initial_alphabet=BYTE_SYMBOLS, show_progress=progress
        )
        pre_tokenizer = backend.pre_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence([LONG_RUNS, pre_tokenizer])
        backend.train_from_iterator(map(check_unicode, texts), trainer)
        backend.pre_tokenizer = pre_tokenizer
        return cls(backend)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer of a model folder. Raises `UserError` if it is missing or damaged."""
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise UserError(f"{folder}: {TOKENIZER_FILE} is missing: there is no whole model here")
        check(path)
        return cls.from_json(path.read_bytes(), str(path))

    @classmethod
    def from_json(cls, content: bytes, where: str) -> "Tokenizer":
        """From the content of a `tokenizer.json`. Raises `UserError`, which names `where`, if it is damaged."""
        try:
            with _panics():
                backend = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises nothing more specific
            raise UserError(f"{where}: damaged or not a tokenizer ({error!s:.200})") from None
        return cls(backend)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the tokens, in hexadecimal."""
        return hashlib.sha256(self.backend.to_str().encode("utf-8")).hexdigest()

    @property
    def is_character_level(self) -> bool:
        """Whether every token is a character or a part of one."""
        return self._characters is not None

    def save(self, folder: Path, block_size: int | None = None) -> None:
        """Write `tokenizer.json` into a folder, which may be new, and for a model also `tokenizer_config.json`.

        `block_size`: the model's context, which `transformers` reads there. Raises `OSError` if it cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with replacing_listed(folder / TOKENIZER_FILE) as temporary:
            temporary.write_text(self.backend.to_str(pretty=True), encoding="utf-8")
        if block_size is None:
            return
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **dict.fromkeys(("bos_token", "eos_token", "pad_token"), EOT_TOKEN),
            "model_max_length": block_size,
            "clean_up_tokenization_spaces": False,
        }
        write_json(folder / "tokenizer_config.json", settings, replacing_listed)

    def encode(self, text: str) -> Tokens:
        """Token ids (T,) of a text, without special tokens.

        Raises `UserError` for a lone surrogate, and if the text does not come back from its tokens as it was.
        """
        if self._characters is None:
            return np.array(self._encode_with_library(check_unicode(text)), dtype=self.dtype)
        try:
            return self._characters.encode(text)
        except UnicodeEncodeError:
            check_unicode(text)
            raise

    def encode_batch(self, texts: Sequence[str]) -> list[Tokens]:
        """`encode` of several texts, on all cores where the library does the work."""
        if self._characters is not None:
            return [self.encode(text) for text in texts]
        with _panics():
            found = self.backend.encode_batch_fast([check_unicode(text) for text in texts], add_special_tokens=False)
        return [
            np.array(self._check(text, encoding.ids), dtype=self.dtype)
            for text, encoding in zip(texts, found, strict=True)
        ]

    def _encode_with_library(self, text: str) -> list[int]:
        with _panics():
            return self._check(text, self.backend.encode(text, add_special_tokens=False).ids)

    def _check(self, text: str, ids: list[int]) -> list[int]:
        """The tokens, if the text comes back from them: a tokenizer that is not ours may lose or change characters."""
        back = b"".join(map(self._bytes.__getitem__, ids))
        if back != text.encode("utf-8"):
            same = [a == b for a, b in zip(text, back.decode("utf-8", errors="replace"), strict=False)]
            at = same.index(False) if False in same else len(same)
            what = f"the text does not come back from its tokens as it was (from {text[at : at + 20]!r} on)"
            raise UserError(f"{TOKENIZER_FILE}: {what}; take another tokenizer")
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, without special tokens; bytes that are not valid UTF-8 become U+FFFD."""
        return b"".join(self._bytes[i] for i in ids).decode("utf-8", errors="replace")

    def bytes_of(self, i: int) -> bytes:
        """The bytes of a token id; none for special tokens."""
        return self._bytes[i]

    def _token_bytes(self) -> list[bytes]:
        """The bytes of each token; none for special tokens."""
        added = self.backend.get_added_tokens_decoder()
        tokens = []
        for i in range(self.vocab_size):
            if i in added:  # added tokens hold text, not byte symbols
                tokens.append(b"" if added[i].special else added[i].content.encode("utf-8"))
                continue
            symbols = self.backend.id_to_token(i) or ""
            if not all(symbol in SYMBOL_BYTES for symbol in symbols):
                raise UserError(f"{TOKENIZER_FILE}: token {i} ({symbols!r:.40}) is not bytes; expected byte-level BPE")
            tokens.append(bytes(SYMBOL_BYTES[symbol] for symbol in symbols))
        return tokens


class DecodeStream:
    """The text of token ids as they come, in pieces of whole characters, with `separator` for `<|endoftext|>`.

    A character that the last token leaves incomplete is not shown.
    """

    def __init__(self, tokenizer: Tokenizer, separator: str) -> None:
        self._tokenizer, self._separator = tokenizer, separator
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def step(self, i: int) -> str:
        """The text that one more token completes; may be empty."""
        is_eot = i == self._tokenizer.eot_id
        return self._decoder.decode(self._tokenizer.bytes_of(i), final=is_eot) + (self._separator if is_eot else "")
