"""How many tokens a document has: those of its texts, and a fixed number an image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from datafetch.errors import ConfigurationError, raise_if_exhausted

TOKENS_AN_IMAGE = 729  # 27 × 27 patches, as the recipe's vision tower has them


class TokenCounter:
    """Counts with a tokenizer of Hugging Face's format.

    Args:
        path: Its ``tokenizer.json``.

    Attributes:
        sha256: Of the file, hex.

    Raises:
        ConfigurationError: It can't be read, or the library for it is not installed.
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
            raise ConfigurationError(f"cannot read the tokenizer {path}: {error.strerror or error}") from error
        except Exception as error:  # tokenizers raises a bare Exception for a file that is none
            raise_if_exhausted(error)
            raise ConfigurationError(f"{path} is not a tokenizer.json: {error}") from error
        # What the file says of its model's longest input would cut off what is to be counted.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.sha256 = hashlib.sha256(content).hexdigest()

    def count(self, texts: Sequence[str], images: int) -> int:
        """The tokens of a document; a lone surrogate, which JSON can hold, counts as a question mark."""
        whole = [text.encode("utf-8", "replace").decode() for text in texts]
        return images * TOKENS_AN_IMAGE + sum(map(len, self._tokenizer.encode_batch(whole, add_special_tokens=False)))
