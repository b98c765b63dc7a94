"""A table whose columns are never too narrow for what stands in them."""

from __future__ import annotations

from typing import Any

from textual.widgets import DataTable


class Table(DataTable[Any]):
    """DataTable measures new rows once it is idle, and keeps lines that were drawn before that at the old widths."""

    def watch_virtual_size(self) -> None:
        """Widths have changed: draw all lines anew."""
        self.notify_style_update()
