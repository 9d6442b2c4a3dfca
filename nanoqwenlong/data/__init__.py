"""Examples from files: reading, checking, mixing, and turning them into token ids."""

from .files import mix, read, shares
from .prompt import sft_branch, tokenize

__all__ = ["mix", "read", "sft_branch", "shares", "tokenize"]
