"""Examples from files: reading, checking, mixing, and turning them into token ids."""

from .files import mix, read, shares
from .formats import as_row
from .prompt import sft_branch, tokenize

__all__ = ["as_row", "mix", "read", "sft_branch", "shares", "tokenize"]
