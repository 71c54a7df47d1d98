"""Text to token ids and back: byte-level BPE in one `tokenizer.json` (Hugging Face `tokenizers`).

The character tokenizer is the BPE whose merges do nothing but build the characters of the training texts out of their
UTF-8 bytes: a character is one token, and one never seen falls back to pieces of its bytes, so that any text goes
through and comes back unchanged. Being an ordinary BPE, it is read alike by `transformers` and llama.cpp.
"""

import codecs
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from mini_transformer.errors import UserError
from mini_transformer.files import replacing, write_json
from mini_transformer.text.char import Alphabet, CharacterTable, vocabulary

Tokens = NDArray[np.unsignedinteger]  # uint16 where the vocabulary allows it, else uint32

EOT_TOKEN = "<|endoftext|>"
FILE = "tokenizer.json"
# How GPT-4o and GPT-OSS (o200k) part text before merging; llama.cpp knows it as "gpt-4o". Characters are never parted,
# so it changes nothing for the character tokenizer but keeps pieces short.
SPLIT = "|".join(
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
    """The printable character that stands for each of the 256 bytes in a byte-level BPE (GPT-2's table)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


BYTE_SYMBOLS = _byte_symbols()
SYMBOL_BYTES = {symbol: byte for byte, symbol in enumerate(BYTE_SYMBOLS)}


def check_text(text: str) -> str:
    """The text, or a `UserError` if it holds half of a surrogate pair, which no UTF-8 file can."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text holds a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}; "
            "it is not valid Unicode text"
        ) from None
    return text


def byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    """A tokenizer of our own kind around a vocabulary with its merges."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    prepend_eot(backend, 0)
    backend.add_special_tokens([tokenizers.AddedToken(EOT_TOKEN, special=True, normalized=False)])
    return backend


def prepend_eot(backend: tokenizers.Tokenizer, eot_id: int) -> None:
    """A document begins behind an end token, in training and in anyone's prompt."""
    backend.post_processor = processors.TemplateProcessing(
        single=f"{EOT_TOKEN} $A", special_tokens=[(EOT_TOKEN, eot_id)]
    )


class Tokenizer:
    """One tokenizer and its `tokenizer.json`."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Raises `UserError` if the tokenizer has no `<|endoftext|>` or is not byte-level BPE."""
        end = backend.token_to_id(EOT_TOKEN)
        if end is None:
            raise UserError(f"{FILE}: the tokenizer has no {EOT_TOKEN} token")
        self.eot_id: int = end
        self.backend = backend
        self.backend.encode_special_tokens = True  # a literal <|endoftext|> in a text is text
        self.backend.no_truncation()
        self.backend.no_padding()
        self.vocab_size: int = max(backend.get_vocab().values()) + 1
        self.dtype = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32
        self._bytes = self._token_bytes()
        self._characters = CharacterTable.of(self._bytes, self.dtype, self._encode_slowly)

    @classmethod
    def from_characters(cls, texts: Iterable[str]) -> "Tokenizer":
        """The character tokenizer of some texts. Ids: the end token, the 256 bytes, then longer pieces, sorted."""
        alphabet = Alphabet()
        for text in texts:
            alphabet.add(check_text(text))
        ids, merges = vocabulary(alphabet.characters(), EOT_TOKEN, BYTE_SYMBOLS)
        return cls(byte_level(models.BPE(vocab=ids, merges=merges)))

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocab_size: int, progress: bool = False) -> "Tokenizer":
        """Byte-level BPE as GPT has it, learnt from some texts. Ids: the end token, the 256 bytes, then the merges.

        The vocabulary is smaller than asked for where the texts have no more pairs to merge.
        """
        backend = byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=[EOT_TOKEN], initial_alphabet=BYTE_SYMBOLS, show_progress=progress
        )
        backend.train_from_iterator(map(check_text, texts), trainer)
        return cls(backend)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer of a model folder. Raises `UserError` if it is missing or damaged."""
        path = folder / FILE
        if not path.is_file():
            raise UserError(f"{folder}: {FILE} is missing: no whole model stands here")
        return cls.from_json(path.read_bytes(), str(path))

    @classmethod
    def from_json(cls, content: bytes, where: str) -> "Tokenizer":
        """From the content of a `tokenizer.json`. Raises `UserError`, which names `where`, if it is damaged."""
        try:
            return cls(tokenizers.Tokenizer.from_buffer(content))
        except UserError:
            raise
        except Exception as error:  # the library raises nothing more exact
            raise UserError(f"{where}: damaged or not a tokenizer ({error})") from None

    def to_json(self) -> str:
        """The content of `tokenizer.json`."""
        return self.backend.to_str(pretty=True)

    @property
    def fingerprint(self) -> str:
        """A hash of all that the tokenizer does."""
        return hashlib.sha256(self.backend.to_str().encode("utf-8")).hexdigest()

    @property
    def is_character_level(self) -> bool:
        """Whether every token is a character or a part of one."""
        return self._characters is not None

    def save(self, folder: Path, block_size: int) -> None:
        """Write `tokenizer.json` and, for `transformers`, `tokenizer_config.json`."""
        with replacing(folder / FILE) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": EOT_TOKEN,
            "eos_token": EOT_TOKEN,
            "pad_token": EOT_TOKEN,
            "model_max_length": block_size,
            "clean_up_tokenization_spaces": False,
        }
        write_json(folder / "tokenizer_config.json", settings)

    def encode(self, text: str) -> Tokens:
        """Token ids of a text; nothing is added to it. Raises `UserError` for a lone surrogate."""
        if self._characters is None:
            return np.array(self._encode_slowly(check_text(text)), dtype=self.dtype)
        try:
            return self._characters.encode(text)
        except UnicodeEncodeError:
            check_text(text)
            raise

    def encode_batch(self, texts: Sequence[str]) -> list[Tokens]:
        """`encode` of several texts, on all cores where the library does the work."""
        if self._characters is not None:
            return [self.encode(text) for text in texts]
        found = self.backend.encode_batch_fast([check_text(text) for text in texts], add_special_tokens=False)
        return [np.array(encoding.ids, dtype=self.dtype) for encoding in found]

    def _encode_slowly(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; bytes that make no character become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of token ids."""
        return b"".join(self._bytes[i] for i in ids)

    def decode_stream(self, ids: Iterable[int], border: str) -> Iterator[str]:
        """The text of token ids as they come, in pieces of whole characters; `border` stands for the end token."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for i in ids:
            piece = decoder.decode(self._bytes[i], final=i == self.eot_id) + (border if i == self.eot_id else "")
            if piece:
                yield piece
        if piece := decoder.decode(b"", final=True):
            yield piece

    def _token_bytes(self) -> list[bytes]:
        """The bytes of each token; none for the end token and other special ones."""
        added = self.backend.get_added_tokens_decoder()
        tokens = []
        for i in range(self.vocab_size):
            if i in added:  # what is added is written as it stands
                tokens.append(b"" if added[i].special else added[i].content.encode("utf-8"))
                continue
            symbols = self.backend.id_to_token(i) or ""
            if not all(symbol in SYMBOL_BYTES for symbol in symbols):
                raise UserError(f"{FILE}: token {i} ({symbols!r}) is not made of bytes: not a byte-level tokenizer")
            tokens.append(bytes(SYMBOL_BYTES[symbol] for symbol in symbols))
        return tokens
