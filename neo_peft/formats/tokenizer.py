"""Load a base model's tokenizer with transformers, and check it."""

from pathlib import Path
from typing import TYPE_CHECKING

from neo_peft.errors import InputError
from neo_peft.formats.base_config import LARGEST
from neo_peft.formats.base_folder import check_tokenizer_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """Load a folder's tokenizer. `add_prefix_space` is turned off, since our texts already have
    their leading spaces. Raises InputError for a tokenizer that does not work."""
    from transformers import AutoTokenizer

    check_tokenizer_files(folder)
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
