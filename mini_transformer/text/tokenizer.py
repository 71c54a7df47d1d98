"""Text to token ids and back: byte-level BPE in one `tokenizer.json` (Hugging Face `tokenizers`).

The character tokenizer is the BPE whose merges only build the characters of the training texts out of their UTF-8
bytes: a character is one token, and an unknown one falls back to pieces of its bytes, so that any text round-trips.
Being an ordinary byte-level BPE, it is read the same way by `transformers` and llama.cpp.
"""

import codecs
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from mini_transformer.errors import UserError
from mini_transformer.files import replacing, write_json

Tokens = NDArray[np.unsignedinteger]  # uint16 if the vocabulary fits, else uint32

CODE_POINTS = 0x110000
CHUNK = 1 << 16  # characters that are looked up at once: what stays in a core's cache
EOT_TOKEN = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"
# The pre-tokenizer of GPT-4o and GPT-OSS (o200k): how text is split before merging; llama.cpp knows it as "gpt-4o".
# It never splits a character, so for the character tokenizer it changes nothing but how long the words to merge are.
PRE_TOKENIZER_PATTERN = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


def _byte_symbols() -> list[str]:
    """The printable character that represents each of the 256 bytes in a byte-level BPE (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # ! to ~, ¡ to ¬, ® to ÿ
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


BYTE_SYMBOLS = _byte_symbols()
SYMBOL_BYTES = {symbol: byte for byte, symbol in enumerate(BYTE_SYMBOLS)}


def check_unicode(text: str) -> str:
    """The text itself. Raises `UserError` if it holds a lone surrogate, which no UTF-8 file can."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text holds a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}; "
            "it is not valid Unicode text"
        ) from None
    return text


def byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    """Our pre-tokenizer, decoder and special token around a byte-level BPE, whose token 0 is `<|endoftext|>`."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PRE_TOKENIZER_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    prepend_eot(backend, 0)
    backend.add_special_tokens([tokenizers.AddedToken(EOT_TOKEN, special=True, normalized=False)])
    return backend


def prepend_eot(backend: tokenizers.Tokenizer, eot_id: int) -> None:
    """Let other programs start their prompts as documents start in training: after `<|endoftext|>`."""
    backend.post_processor = processors.TemplateProcessing(
        single=f"{EOT_TOKEN} $A", special_tokens=[(EOT_TOKEN, eot_id)]
    )


def distinct_characters(texts: Iterable[str]) -> str:
    """The distinct characters of some texts, sorted. The texts must hold no lone surrogate."""
    seen = np.zeros(CODE_POINTS, dtype=bool)
    for text in texts:
        for start in range(0, len(text), CHUNK):
            seen[np.frombuffer(text[start : start + CHUNK].encode("utf-32-le"), dtype=np.uint32)] = True
    return "".join(map(chr, np.flatnonzero(seen).tolist()))


def character_ids(tokens: Sequence[bytes]) -> dict[int, int] | None:
    """The token id of each code point, given the bytes of each token; None if a token has more than one character."""
    ids = {}
    for i, token in enumerate(tokens):
        try:
            text = token.decode("utf-8")
        except UnicodeDecodeError as error:
            # a part of a character is fine: one byte, or the beginning of a longer sequence
            if len(token) > 1 and not (error.start == 0 and "unexpected end" in error.reason):
                return None
            continue
        if len(text) > 1:
            return None
        if text:
            ids[ord(text)] = i
    return ids


class CharacterTable:
    """Encoding by table look-up: the merges of a character tokenizer never cross from one character to the next."""

    def __init__(
        self, ids: dict[int, int], dtype: type[np.unsignedinteger], fallback: Callable[[str], list[int]]
    ) -> None:
        """`ids`: of the known code points, below the largest of `dtype`. `fallback`: the ids of any other character."""
        self._unknown, self._fallback = np.iinfo(dtype).max, cache(fallback)
        self._table = np.full(CODE_POINTS, self._unknown, dtype=dtype)
        self._table[list(ids)] = list(ids.values())

    def encode(self, text: str) -> Tokens:
        """The token ids (T,) of a text. Raises `UnicodeEncodeError` for a lone surrogate."""
        parts = [self._table[:0]]
        for start in range(0, len(text), CHUNK):
            chunk = text[start : start + CHUNK]
            points = np.frombuffer(chunk.encode("utf-32-le"), dtype=np.uint32)
            ids = np.take(self._table, points, mode="clip")  # no code point is outside: clip is merely faster
            parts.append(self._fill_in(chunk, ids) if ids.max() == self._unknown else ids)
        return np.concatenate(parts)

    def _fill_in(self, text: str, ids: Tokens) -> Tokens:
        """The token ids of a chunk, with those of the fallback in place of unknown characters."""
        unknown = ids == self._unknown
        pieces = [self._fallback(text[i]) for i in np.flatnonzero(unknown)]
        lengths = np.ones(len(ids), dtype=np.int64)
        lengths[unknown] = [len(piece) for piece in pieces]
        out = np.repeat(ids, lengths)
        out[np.repeat(unknown, lengths)] = [i for piece in pieces for i in piece]
        return out


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
        self.dtype = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32
        self._bytes = self._token_bytes()
        ids = character_ids(self._bytes) if self.vocab_size <= np.iinfo(self.dtype).max else None
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
        backend.train_from_iterator(map(check_unicode, texts), trainer)
        return cls(backend)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer of a model folder. Raises `UserError` if it is missing or damaged."""
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise UserError(f"{folder}: {TOKENIZER_FILE} is missing: there is no whole model here")
        return cls.from_json(path.read_bytes(), str(path))

    @classmethod
    def from_json(cls, content: bytes, where: str) -> "Tokenizer":
        """From the content of a `tokenizer.json`. Raises `UserError`, which names `where`, if it is damaged."""
        try:
            backend = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises nothing more specific
            raise UserError(f"{where}: damaged or not a tokenizer ({error})") from None
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
        with replacing(folder / TOKENIZER_FILE) as temporary:
            temporary.write_text(self.backend.to_str(pretty=True), encoding="utf-8")
        if block_size is None:
            return
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **dict.fromkeys(("bos_token", "eos_token", "pad_token"), EOT_TOKEN),
            "model_max_length": block_size,
            "clean_up_tokenization_spaces": False,
        }
        write_json(folder / "tokenizer_config.json", settings)

    def encode(self, text: str) -> Tokens:
        """Token ids (T,) of a text, without special tokens. Raises `UserError` for a lone surrogate."""
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
        found = self.backend.encode_batch_fast([check_unicode(text) for text in texts], add_special_tokens=False)
        return [np.array(encoding.ids, dtype=self.dtype) for encoding in found]

    def _encode_with_library(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, without special tokens; bytes that are not valid UTF-8 become U+FFFD."""
        return b"".join(self._bytes[i] for i in ids).decode("utf-8", errors="replace")

    def decode_stream(self, ids: Iterable[int], separator: str) -> Iterator[str]:
        """The text of token ids as they come, in pieces of whole characters, with `separator` for `<|endoftext|>`."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for i in ids:
            piece = decoder.decode(self._bytes[i], final=i == self.eot_id) + (separator if i == self.eot_id else "")
            if piece:
                yield piece
        if piece := decoder.decode(b"", final=True):
            yield piece

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
                raise UserError(f"{TOKENIZER_FILE}: token {i} ({symbols!r}) is not bytes; expected byte-level BPE")
            tokens.append(bytes(SYMBOL_BYTES[symbol] for symbol in symbols))
        return tokens
