"""A base's tokenizer, read by transformers and checked."""

from pathlib import Path
from typing import TYPE_CHECKING

from neo_peft.errors import InputError
from neo_peft.formats.base_config import LARGEST
from neo_peft.formats.base_folder import check_tokenizer_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """Load a folder's tokenizer, without its `add_prefix_space`: the space in front of a text is
    ours to set. Raise InputError where it cannot be read, or makes no tokens."""
    from transformers import AutoTokenizer

    check_tokenizer_files(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        before_words = tokenizer.backend_tokenizer.pre_tokenizer
        if getattr(before_words, "add_prefix_space", False):
            before_words.add_prefix_space = False
            # what is saved again
            tokenizer.add_prefix_space = tokenizer.init_kwargs["add_prefix_space"] = False
            tokenizer.backend_tokenizer.pre_tokenizer = before_words
        largest = max(tokenizer.get_vocab().values())
        if not tokenizer.backend_tokenizer.encode(" Label :", add_special_tokens=False).ids:
            raise ValueError("it makes no tokens")
    except Exception as error:  # the library's own errors are of every kind
        raise InputError(
            f"{folder}: the tokenizer cannot be read: {type(error).__name__}: {error}; put the "
            "model's own files there"
        ) from error
    if largest > LARGEST:
        raise InputError(f"{folder}: the tokenizer has a token {largest}; {LARGEST} is the most")
    return tokenizer
