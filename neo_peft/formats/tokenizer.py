"""Load a base model's tokenizer with transformers, check it, and describe how it splits texts.

Importing transformers takes half as long as importing torch. The tokenizer of the bundled model
does without, until it is saved.
"""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neo_peft.defaults import BUNDLED_MODEL
from neo_peft.encoding import tokenize
from neo_peft.errors import InputError
from neo_peft.formats.base_config import LARGEST
from neo_peft.formats.base_folder import (
    BUNDLED,
    OTHER_VOCABULARIES,
    TOKENIZER_CONFIG,
    TOKENIZER_FILES,
    TOKENIZER_JSON,
    check_tokenizer_files,
)
from neo_peft.system.files import sha256_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Texts on which tokenizers differ: spaces, case, digits, accents, scripts, special tokens.
ODD_TEXTS = (
    "Sentence : Profit rose . Label :",
    " IL-2 gene",
    "IL-2 gene",
    "  two  spaces ",
    "a\tb\r\n\nc",
    "don't they'll WE'RE",
    "NF-\u03baB (p<0.05); CD28+/CD4-",
    "1234567 3.14 1,000 \u00bd m\u00b2",
    "lower UPPER miXed",
    "na\u00efve Z\u00fcrich",
    "e\u0301 \u00e9 \ufb01 \uff21 \u212b",
    "\u00a0x\u200b\u2028y",
    "\u6f22\u5b57\u304b\u306a \ud55c\uad6d\uc5b4",
    "\u041f\u0440\u0438\u0432\u0435\u0442",
    "\u0645\u0631\u062d\u0628\u0627",
    "\U0001f469\u200d\U0001f52c",
    "\x00\x7f",
    "http://x.y/z?a=b_c#d",
    "aaaaaaaaaaaaaaaa",
    "antidisestablishmentarianism",
    "<|endoftext|>a <s> </s> <unk> <pad> [PAD] [UNK] [CLS] <mask>",
    "\u2581a ##b \u0120c",
)
MOST_ADDED = 256  # added tokens that are also tried inside a text


class BundledTokenizer:
    """The bundled model's tokenizer. It encodes and decodes with the package `tokenizers`, exactly
    as the tokenizer that transformers loads from the same files.

    All other attributes are those of that tokenizer, which is loaded when one is read or set.
    """

    OWN = ("name_or_path", "backend_tokenizer", "all_special_ids")

    def __init__(self, folder: Path):
        from tokenizers import Tokenizer

        self.name_or_path = str(folder)
        self.backend_tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_JSON))
        added = self.backend_tokenizer.get_added_tokens_decoder()
        self.all_special_ids = [index for index, token in added.items() if token.special]

    def decode(self, ids: int | list[int], **options: Any) -> str:
        if options or not isinstance(ids, int | list):  # a tensor, or transformers' options
            return self.in_transformers.decode(ids, **options)
        ids = [ids] if isinstance(ids, int) else ids
        return self.backend_tokenizer.decode(ids, skip_special_tokens=False)

    @cached_property
    def in_transformers(self) -> "PreTrainedTokenizerFast":
        """The tokenizer that transformers loads. From now on both have one backend."""
        tokenizer = load_with_transformers(Path(self.name_or_path))
        self.backend_tokenizer = tokenizer.backend_tokenizer
        return tokenizer

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.in_transformers(*args, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # looked up by `copy`, before the object has its attributes
            raise AttributeError(name)
        return getattr(self.in_transformers, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.OWN:
            super().__setattr__(name, value)
        else:
            setattr(self.in_transformers, name, value)


def is_bundled(folder: Path) -> bool:
    """Return whether a folder has the bundled model's tokenizer: its two files, and no others."""
    own = (TOKENIZER_JSON, TOKENIZER_CONFIG)
    others = {*TOKENIZER_FILES, *OTHER_VOCABULARIES} - {*own}
    return not any((folder / name).exists() for name in others) and all(
        (folder / name).is_file()
        and (folder / name).read_bytes() == (BUNDLED[BUNDLED_MODEL] / name).read_bytes()
        for name in own
    )


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast | BundledTokenizer":
    """Load a folder's tokenizer. `add_prefix_space` is turned off, since our texts already have
    their leading spaces. Raises InputError for a tokenizer that does not work."""
    check_tokenizer_files(folder)
    return BundledTokenizer(folder) if is_bundled(folder) else load_with_transformers(folder)


def load_with_transformers(folder: Path) -> "PreTrainedTokenizerFast":
    """Load a tokenizer with transformers. See `load_tokenizer`."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
        if getattr(pre_tokenizer, "add_prefix_space", False):
            pre_tokenizer.add_prefix_space = False
            # save_pretrained writes these two
            tokenizer.add_prefix_space = tokenizer.init_kwargs["add_prefix_space"] = False
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizer
        if getattr(tokenizer.backend_tokenizer.model, "dropout", None):
            raise ValueError("tokenizer.json has a BPE dropout, so it splits texts at random")
        largest = max(tokenizer.get_vocab().values())
        if not tokenizer.backend_tokenizer.encode(" Label :", add_special_tokens=False).ids:
            raise ValueError("it returns no tokens for a text")
    except Exception as error:  # the library raises many exception classes
        raise InputError(
            f"{folder}: the tokenizer cannot be loaded: {type(error).__name__}: {error}; put the "
            "model's own files there"
        ) from error
    if largest > LARGEST:
        raise InputError(
            f"{folder}: the tokenizer has the token id {largest}; the largest allowed is {LARGEST}"
        )
    return tokenizer


def splitting_digest(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Return a hash of how a tokenizer splits texts: of the token ids of ODD_TEXTS, of the added
    tokens, and of short texts with one of these inside."""
    decoder = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    added = [(index, token.content) for index, token in sorted(decoder.items())]
    texts = list(ODD_TEXTS)
    for _, token in added[:MOST_ADDED]:
        texts += (f"a{token}b", f" {token} ")
    return sha256_of([added, [_token_ids(tokenizer, text) for text in texts]])


def _token_ids(tokenizer: "PreTrainedTokenizerFast", text: str) -> list[int] | None:
    """Return a text's token ids; None where the tokenizer has no token for a part of it."""
    try:
        return tokenize(tokenizer, [text])[0]
    except Exception:  # tokenizers raises plain exceptions, for example without an unknown token
        return None


def add_no_tokens(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Make a tokenizer encode a text as our encoder does: with no token in front or behind, not cut
    and not padded."""
    from tokenizers.processors import ByteLevel

    backend = tokenizer.backend_tokenizer
    for name in ("add_bos_token", "add_eos_token"):
        if getattr(tokenizer, name, False):
            setattr(tokenizer, name, False)
        tokenizer.init_kwargs.pop(name, None)
    backend.no_truncation()
    backend.no_padding()
    if backend.num_special_tokens_to_add(is_pair=False):
        backend.post_processor = ByteLevel(trim_offsets=True)  # it adds none
