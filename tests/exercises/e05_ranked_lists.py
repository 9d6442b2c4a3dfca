"""Rewards for ranked lists"""

from hypothesis import strategies as st

FILE = "nanoqwenlong/reward/measures.py"
WRITE = ("ndcg", "pairwise")
TESTS = ["tests/test_metrics.py", "-k", "ndcg or pairwise"]
TRAIN = None

WORDS = ["tea", "salt", "rice", "iron", "silk"]
CASES = st.fixed_dictionaries({"gold": st.permutations(WORDS).flatmap(lambda p: st.integers(2, 5).map(lambda n: p[:n])),
                               "given": st.lists(st.sampled_from([*WORDS, "wool"]), max_size=7)})


def answer(m, given, gold):
    """Both measures of one answer."""
    return [measure("\n".join(given), "\n".join(gold)) for measure in (m.ndcg, m.pairwise)]


def bounds(m, given, gold):
    """Both are between 0 and 1. The gold list itself earns exactly 1, an empty answer 0"""
    assert all(0 <= value <= 1 for value in answer(m, given, gold))
    assert answer(m, gold, gold) == [1, 1] and answer(m, [], gold) == [0, 0]


def a_swap_never_helps(m, gold):
    """Swapping two neighbours of the gold list lowers both"""
    for place in range(len(gold) - 1):
        swapped = [*gold[:place], gold[place + 1], gold[place], *gold[place + 2:]]
        assert all(value < 1 for value in answer(m, swapped, gold))


def repeating_never_helps(m, given, gold):
    """Saying an item of the answer once more at the end never raises a reward"""
    before = answer(m, given, gold)
    for word in given:
        after = answer(m, [*given, word], gold)
        assert all(a <= b + 1e-12 for a, b in zip(after, before))


def early_places_count_more(m, gold):
    """NDCG of the first gold item alone is k / DCG(gold): nothing is scaled by how much was answered"""
    from math import log2
    ideal = sum((len(gold) - place) / log2(place + 2) for place in range(len(gold)))
    assert abs(answer(m, gold[:1], gold)[0] - len(gold) / ideal) < 1e-12


def pairs_by_hand(m, gold):
    """Pairwise: the gold list without its last item has C(n-1, 2) of C(n, 2) pairs right. Reversed it has none"""
    n = len(gold)
    assert abs(answer(m, gold[:-1], gold)[1] - (n - 2) / n) < 1e-12 and answer(m, gold[::-1], gold)[1] == 0


def added_items_cost(m, gold):
    """A wrong item at the front lowers both, and at the end it lowers pairwise"""
    first, last = answer(m, ["wool", *gold], gold), answer(m, [*gold, "wool"], gold)
    assert first[0] < 1 and first[1] < 1 and last[1] < 1


def late_items_earn_nothing(m, gold):
    """For k gold items, NDCG does not look beyond the first k places of the answer"""
    assert answer(m, [*(["wool"] * len(gold)), *gold], gold)[0] == 0


LAWS = (bounds, a_swap_never_helps, repeating_never_helps, early_places_count_more, pairs_by_hand, added_items_cost,
        late_items_earn_nothing)
WRONG = (
    ("the ideal has the length of the answer instead of all gold items", "dcg(a) / dcg(g) if g else 0.0",
     "dcg(a) / max(dcg(g[:len(a)]), 1e-9) if g else 0.0"),
    ("the discount of the first place is log2(1) = 0, replaced by 1", "log2(place + 2)", "max(1, log2(place + 1))"),
    ("the gain of an item is 2^worth - 1 instead of its worth", "worth.get(item, 0) / log2",
     "(2 ** worth.get(item, 0) - 1) / log2"),
    ("all places of the answer count instead of the first k", "enumerate(side[:len(g)])", "enumerate(side)"),
    ("all gold items are worth the same", "{item: len(g) - place for", "{item: 1 for"),
    ("pairs with items that are not gold ones are not counted", "comb(len(set(a) | set(g)), 2)", "comb(len(g), 2)"),
    ("pairs in the wrong order are counted", "num_right += bisect(before, place[item])",
     "num_right += len(before) - bisect(before, place[item])"))
