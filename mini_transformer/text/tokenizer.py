"""Text to token ids and back: byte-level BPE in one `tokenizer.json` (Hugging Face `tokenizers`).

The character tokenizer is the BPE whose merges do nothing but build the characters of the training texts out of their
UTF-8 bytes: a character is one token, and one never seen falls back to pieces of its bytes, so that any text goes
through and comes back unchanged. Being an ordinary BPE, it is read alike by `transformers` and llama.cpp.
"""

import codecs
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, processors

from mini_transformer.errors import UserError
from mini_transformer.files import replacing, write_json

END = "<|endoftext|>"
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


class Tokenizer:
    """One tokenizer and its `tokenizer.json`."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Raises `UserError` if the tokenizer has no `<|endoftext|>` or is not byte-level BPE."""
        end = backend.token_to_id(END)
        if end is None:
            raise UserError(f"{FILE}: the tokenizer has no {END} token")
        self.end_id: int = end
        self.backend = backend
        self.backend.encode_special_tokens = True  # a literal <|endoftext|> in a text is text
        self.vocab_size: int = backend.get_vocab_size()
        self._bytes = self._token_bytes()
        self._characters = self._character_table()

    @classmethod
    def from_characters(cls, texts: Iterable[str]) -> "Tokenizer":
        """The character tokenizer of some texts. Ids: the end token, the 256 bytes, then longer pieces, sorted."""
        characters: set[str] = set()
        for text in texts:
            characters.update(check_text(text))
        vocabulary = {END: 0} | {symbol: byte + 1 for byte, symbol in enumerate(BYTE_SYMBOLS)}
        merges: list[tuple[str, str]] = []
        for character in sorted(characters):
            symbols = [BYTE_SYMBOLS[byte] for byte in character.encode("utf-8")]
            piece = symbols[0]
            for symbol in symbols[1:]:
                if piece + symbol not in vocabulary:
                    vocabulary[piece + symbol] = len(vocabulary)
                    merges.append((piece, symbol))
                piece += symbol
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(SPLIT), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = decoders.ByteLevel()
        # a document begins behind an end token, in training and in anyone's prompt
        backend.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
        backend.add_special_tokens([tokenizers.AddedToken(END, special=True, normalized=False)])
        return cls(backend)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer of a model folder. Raises `UserError` if it is missing or damaged."""
        path = folder / FILE
        if not path.is_file():
            raise UserError(f"{folder}: {FILE} is missing: no whole model stands here")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except UserError:
            raise
        except Exception as error:  # the library raises nothing more exact
            raise UserError(f"{path}: damaged or not a tokenizer ({error})") from None

    def save(self, folder: Path, block_size: int) -> None:
        """Write `tokenizer.json` and, for `transformers`, `tokenizer_config.json`."""
        with replacing(folder / FILE) as draft:
            draft.write_text(self.backend.to_str(pretty=True), encoding="utf-8")
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END,
            "eos_token": END,
            "pad_token": END,
            "model_max_length": block_size,
            "clean_up_tokenization_spaces": False,
        }
        write_json(folder / "tokenizer_config.json", settings)

    def encode(self, text: str) -> NDArray[np.uint32]:
        """Token ids of a text; nothing is added to it. Raises `UserError` for a lone surrogate."""
        if self._characters is None:
            return np.array(self.backend.encode(check_text(text), add_special_tokens=False).ids, dtype=np.uint32)
        return self._encode_characters(check_text(text))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; bytes that make no character become U+FFFD."""
        return b"".join(self._bytes[i] for i in ids).decode("utf-8", errors="replace")

    def decode_stream(self, ids: Iterable[int], border: str) -> Iterator[str]:
        """The text of token ids as they come, in pieces of whole characters; `border` stands for the end token."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for i in ids:
            piece = decoder.decode(self._bytes[i], final=i == self.end_id) + (border if i == self.end_id else "")
            if piece:
                yield piece
        if piece := decoder.decode(b"", final=True):
            yield piece

    def _token_bytes(self) -> list[bytes]:
        """The bytes of each token; none for the end token and other special ones."""
        special = {i for i, token in self.backend.get_added_tokens_decoder().items() if token.special}
        tokens = []
        for i in range(self.vocab_size):
            symbols = "" if i in special else self.backend.id_to_token(i) or ""
            if not all(symbol in SYMBOL_BYTES for symbol in symbols):
                raise UserError(f"{FILE}: token {i} ({symbols!r}) is not made of bytes: not a byte-level tokenizer")
            tokens.append(bytes(SYMBOL_BYTES[symbol] for symbol in symbols))
        return tokens

    def _character_table(self) -> NDArray[np.int32] | None:
        """For a character tokenizer, the id of each code point (-1: none); else None."""
        merges = json.loads(self.backend.to_str())["model"].get("merges", [])
        table = np.full(0x110000, -1, dtype=np.int32)
        for i, token in enumerate(self._bytes):
            try:
                text = token.decode("utf-8")
            except UnicodeDecodeError as error:
                # part of a character: bytes that end before they should
                if len(token) > 1 and not (error.start == 0 and "unexpected end" in error.reason):
                    return None
                continue
            if len(text) > 1:
                return None
            if text:
                table[ord(text)] = i
        return table if all(len(pair) == 2 for pair in merges) else None

    def _encode_characters(self, text: str) -> NDArray[np.uint32]:
        """`encode` by table look-up: merges of a character tokenizer never cross from one character to the next."""
        assert self._characters is not None
        points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        ids = self._characters[points]
        unknown = np.flatnonzero(ids < 0)
        if len(unknown) == 0:
            return ids.astype(np.uint32)
        distinct, which = np.unique(points[unknown], return_inverse=True)
        pieces = [self.backend.encode(chr(p), add_special_tokens=False).ids for p in distinct]
        lengths = np.ones(len(ids), dtype=np.int64)
        lengths[unknown] = np.array([len(piece) for piece in pieces])[which]
        out = np.repeat(ids, lengths).astype(np.uint32)
        starts = (np.cumsum(lengths) - lengths)[unknown]
        for k, piece in enumerate(pieces):
            out[starts[which == k][:, None] + np.arange(len(piece))] = piece
        return out
