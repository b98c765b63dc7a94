"""Tables of the UI."""

from __future__ import annotations

from run_folders import in_loop, still
from textual.app import App, ComposeResult

from pillm.tui.table import Table


class Shown(App[None]):
    CSS = "Table { height: 1fr; }"

    def compose(self) -> ComposeResult:
        yield Table(cursor_type="row")


@in_loop
async def test_lines_drawn_before_the_columns_were_measured_are_drawn_again() -> None:
    app = Shown()
    async with app.run_test() as pilot:
        table = app.query_one(Table)
        table.add_columns("model")
        await still(pilot)
        table.add_row("home-assistant-Q4_0.gguf")
        # What the compositor does when it comes before the table is idle.
        early = table.render_line(1).text
        await still(pilot)
        assert "home-assistant-Q4_0.gguf" not in early
        assert "home-assistant-Q4_0.gguf" in table.render_line(1).text
