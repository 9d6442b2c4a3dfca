"""Another solution: all pairs, one by one."""

import itertools
import math


def ndcg(answer, gold):
    given, ideal = both(answer, gold)
    k = len(ideal)
    if k == 0:
        return 0.0
    gain = best = 0.0
    for i in range(1, k + 1):
        best += (k + 1 - i) / math.log2(i + 1)
        if i <= len(given) and given[i - 1] in ideal:
            gain += (k - ideal.index(given[i - 1])) / math.log2(i + 1)
    return gain / best


def pairwise(answer, gold):
    given, ideal = both(answer, gold)
    if len(ideal) < 2:
        return 0.0
    items = set(given).union(ideal)
    right = 0
    for earlier, later in itertools.combinations(given, 2):
        if earlier in ideal and later in ideal and ideal.index(earlier) < ideal.index(later):
            right += 1
    return right / (len(items) * (len(items) - 1) / 2)
