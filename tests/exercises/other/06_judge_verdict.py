"""Another solution: with loops."""

import math
import re
import unicodedata


def clean(text, nonce):
    kept = []
    for char in text:
        if char.isspace() or not unicodedata.category(char).startswith("C"):
            kept.append({"［": "[", "］": "]", "⟦": "(", "⟧": ")", "〚": "(", "〛": ")"}.get(char, char))
    text = re.sub(r"<<<+", " ", "".join(kept))
    text = re.sub(r">>>+", " ", text).replace(nonce, " ")
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"\[(?:\s?\[)+", "(", text)
    return re.sub(r"\](?:\s?\])+", ")", text)


def verdict(reply):
    if "</think>" in reply:
        reply = reply[reply.rindex("</think>") + 8:]
    found = [match.group() for match in re.finditer(r"\[\[\s*(yes|no)\s*\]\]", reply, re.I)]
    lines = reply.rstrip().splitlines()
    if len(found) != 1 or found[0] not in ("[[YES]]", "[[NO]]") or found[0] not in lines[-1]:
        return math.nan
    if TURNED.search(lines[-1]):
        return math.nan
    return 1.0 if found[0] == "[[YES]]" else 0.0
