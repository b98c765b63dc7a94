"""A plan as a graph in text: one line a stage, rails from what makes a file to what reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NODE = "●"


def rails(order: Sequence[str], needs: Mapping[str, Sequence[str]]) -> list[str]:
    """The rails left of each stage, all of one width; `needs` are the stages whose outputs a stage reads.

    A rail begins (`╭`) where its stage stands, and ends (`╰`) at the last stage that reads its outputs.
    """
    last = {need: step for step in order for need in needs.get(step, ())}
    columns: list[str | None] = []
    lines = []
    for step in order:
        used = {columns.index(need) for need in needs.get(step, ()) if need in columns}
        ends = {column for column in used if last.get(columns[column] or "") == step}
        own = None
        if step in last:
            own = next((c for c, name in enumerate(columns) if name is None and c not in ends), len(columns))
            if own == len(columns):
                columns.append(None)
        touched = used | ({own} if own is not None else set())
        left = min(touched, default=len(columns))
        glyphs = []
        for column, name in enumerate(columns):
            line = "─" if column > left else " "
            if column == own:
                glyphs.append("╭" if column == left else "┬")
            elif column in ends:
                glyphs.append("╰" if column == left else "┴")
            elif column in used:
                glyphs.append("├" if column == left else "┼")
            elif name is not None:
                glyphs.append("┿" if column > left else "│")
            else:
                glyphs.append(line)
        lines.append(("".join(glyphs), left < len(columns)))
        for column in ends:
            columns[column] = None
        if own is not None:
            columns[own] = step
    width = max((len(glyphs) for glyphs, _ in lines), default=0)
    return [f"{glyphs.ljust(width, '─' if joined else ' ')}{NODE}" for glyphs, joined in lines]
