"""Another solution: with find and a loop over characters."""

import re


def said(text):
    place = text.rfind("</think>")
    if place < 0 or text.find("<think>", place) >= 0:
        return None
    return text[place + len("</think>"):][-READ:]


def _after_marker(said):
    last = None
    for match in MARKER.finditer(said):
        last = match
    if last is None:
        return ("", "")
    line_start = said.rfind("\n", 0, last.start()) + 1
    marker, tail = said[line_start:last.end()], said[last.end():]
    if last.group().endswith("{"):
        depth, place = 1, 0
        while place < min(len(tail), WHOLE):
            if tail[place] == "\\" and tail[place + 1:place + 2] not in ("", "\n"):
                place += 2
                continue
            depth += {"{": 1, "}": -1}.get(tail[place], 0)
            if depth == 0:
                return marker, tail[:place]
            place += 1
        return marker, ""
    closing = re.search(r"</answer>|\[/answer\]", tail, re.IGNORECASE)
    return marker, tail[:closing.start()] if closing else tail


def final(said):
    marker, text = _after_marker(said)
    if not marker:
        text = said
    else:
        text = text[AFTER_MARKER.match(text).end():]
    if len(text) > WHOLE:
        return ""
    lines = ["" if re.fullmatch(r"[ \t]*```\w*[ \t\r]*", line) else line for line in text.split("\n")]
    return unquoted("\n".join(lines), marker)
