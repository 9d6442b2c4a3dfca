"""HotpotQA (distractor and fullwiki) and 2WikiMultihopQA: as released, and as on the hub."""

from . import fields, passages


def matches(row: dict) -> bool:
    """Whether the context is a list or an object of paragraphs, or one of these as JSON text."""
    context = row.get("context")
    first = context[0] if isinstance(context, list) and context else context
    is_text = isinstance(context, str) and context.lstrip().startswith(("[", "{")) and "supporting_facts" in row
    return "question" in row and (is_text or isinstance(first, list) or isinstance(first, dict) and "title" in first)


def paragraphs(row: dict) -> list[passages.Paragraph]:
    """Paragraphs whose title is among the supporting facts are needed. A test set has no supporting facts."""
    titles = set()
    for number, fact in enumerate(passages.listed(row, "supporting_facts")):
        title = fact.get("title") if isinstance(fact, dict) else fact[0] if fact and isinstance(fact, list) else fact
        titles.add(fields.string(title, f"supporting_facts[{number}]").strip())
    context = passages.read(row, "context")
    return [paragraph._replace(needed=paragraph.title in titles) if titles else paragraph for paragraph in context]
