"""The `tokenizer.json` that is published with a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jaxrec.interop.safetensors_files import existing, hf_package

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def open_tokenizer(folder: Path, *, vocabulary: int) -> Tokenizer:
    """The tokenizer of a model with so many word vectors, without padding or truncation of its own.

    Raises:
      FileNotFoundError: the folder has none.
      ValueError: the file is damaged, or of another model.
    """
    path = existing(folder, "tokenizer.json")
    try:
        tokenizer = hf_package("tokenizers").Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises nothing more special
        raise ValueError(f"{path.name} is no tokenizer ({error}); take the one that was published with the model") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    # Tokens that were added may lie beyond the table: some models that also see images share their tokenizer with one that does not.
    if (size := tokenizer.get_vocab_size(with_added_tokens=False)) > vocabulary:
        raise ValueError(f"{path.name} has {size} tokens, and the model vectors for {vocabulary}: it is of another model; take the one published with it")
    return tokenizer


def check_known(tokenizer: Tokenizer, ids: list[int], what: str, *, vocabulary: int) -> None:
    """Raises ValueError where one of the tokens of `what` has no vector: those that were added may lie beyond the table."""
    if ids and (largest := max(ids)) >= vocabulary:
        token = tokenizer.id_to_token(largest)
        raise ValueError(f"{what} has the token {token!r}, number {largest}, and the model has vectors for {vocabulary}; leave it out")
