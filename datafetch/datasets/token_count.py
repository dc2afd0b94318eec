"""Counts the tokens of a document: those of its texts, and a fixed number for each image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from datafetch.errors import ConfigurationError, raise_if_exhausted

TOKENS_PER_IMAGE = 729  # the recipe's vision tower cuts an image into 27 × 27 patches


class TokenCounter:
    """Counts tokens with a tokenizer in Hugging Face's format.

    Args:
        path: The tokenizer's ``tokenizer.json``.

    Attributes:
        sha256: The hash of that file, in hex.

    Raises:
        ConfigurationError: The file can't be read, or the library ``tokenizers`` is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            from tokenizers import Tokenizer  # noqa: PLC0415 - an extra, needed only to count tokens
        except ImportError as error:
            raise ConfigurationError(
                "--max-tokens needs the library tokenizers; install it with: pip install 'vlm-datafetch[tokens]'"
            ) from error
        try:
            content = path.read_bytes()
            self._tokenizer = Tokenizer.from_str(content.decode())
        except OSError as error:
            raise_if_exhausted(error)
            raise ConfigurationError(
                f"cannot read the tokenizer {path}: {error.strerror or error}; fix this, or give a copy"
            ) from error
        except Exception as error:  # tokenizers raises a bare Exception if the file is not a tokenizer
            raise_if_exhausted(error)
            raise ConfigurationError(f"{path} is not a tokenizer.json: {error}; give that of the model") from error
        # A file may limit the length of its model's input, which would cut off what is to be counted.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.sha256 = hashlib.sha256(content).hexdigest()

    def count(self, texts: Sequence[str], images: int) -> int:
        """Count the tokens of a document. A lone surrogate, which JSON allows, counts as a question mark.

        Args:
            texts: The document's texts.
            images: The number of its images.
        """
        valid = [text.encode("utf-8", "replace").decode() for text in texts]
        return images * TOKENS_PER_IMAGE + sum(map(len, self._tokenizer.encode_batch(valid, add_special_tokens=False)))
