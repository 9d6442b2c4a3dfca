"""KILT: questions whose outputs are answers with their provenance, which are paragraphs of Wikipedia."""

from . import fields, passages


def matches(row: dict) -> bool:
    return "input" in row and isinstance(row.get("output"), list)


def answered(row: dict) -> dict:
    """The row with its answers in `output`."""
    outputs = [fields.check(output, dict, place) for place, output in fields.items(row["output"], "output")]
    return {**row, "output": [output["answer"] for output in outputs if "answer" in output]}


def paragraphs(row: dict) -> list[passages.Paragraph]:
    """The text in `context`, or else the passages of all outputs. As released, KILT only points to them."""
    if "context" in row:
        return [passages.Paragraph("", fields.text(row, "context"))]
    sources = []
    for place, output in fields.items(row["output"], "output"):
        listed = fields.any_items(output, "provenance", under=f"{place}.")
        sources += [source for name, source in listed if "text" in fields.check(source, dict, name)]
    fields.require(sources, 'the field "context" is missing: KILT only points to Wikipedia. Look up "provenance" in '
                   'kilt_knowledgesource.json and write the passages into "context"', fields.WrongForm)
    return list(dict.fromkeys(passages.read({"provenance": sources}, "provenance")))
