"""Two collections of whole responses. HOSTILE ones must earn nothing. TRUE ones must earn their reward, although each
says it in its own way. Both hold all twelve tasks, in English and in Chinese.

    attacks.py      attacks that suit any right answer, and forms of stating one
    english.py      right and wrong answers to questions with a known answer, by class of fault
    chinese.py      the same in Chinese
    lists.py        numbered lists and fenced tables, in both languages
"""

from . import attacks, chinese, english, lists
from .case import GRADED, Case, rewarded

__all__ = ["GRADED", "HOSTILE", "SYNONYMS", "TRUE", "Case", "rewarded"]

SYNONYMS = {**attacks.SYNONYMS, **english.JUDGED}
HOSTILE = list(dict.fromkeys(attacks.HOSTILE + english.HOSTILE + chinese.HOSTILE + lists.HOSTILE))
TRUE = list(dict.fromkeys(attacks.TRUE + english.TRUE + chinese.TRUE + lists.TRUE))
