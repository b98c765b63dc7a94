"""The command palette: every form, profile and run, the screens and the themes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.content import Content
from textual.fuzzy import Matcher
from textual.markup import escape

from pillm.core.errors import PillmError
from pillm.tui.home import entries

if TYPE_CHECKING:
    from pathlib import Path

    from pillm.tui.app import PillmApp


class Offer(NamedTuple):
    """A line of the palette."""

    words: str
    about: str
    do: Callable[[], object]


def offers(app: PillmApp) -> Iterator[Offer]:
    """All that can be done from anywhere. Reads folders, so it is for a thread."""
    yield Offer("Home", "Profiles, runs, commands, datasets, boards", app.action_home)
    yield Offer("Dashboard", "Benchmarks, quality, coverage", app.action_dashboard)
    yield Offer("Help", "What this screen is for, and its keys", app.action_help)
    yield Offer("Quit", "Runs go on", app.action_quit)
    for entry in entries.commands():
        yield Offer(f"Form: {entry.name}", entry.about, partial(app.open_entry, entry))
    for read in (entries.profiles, entries.datasets, entries.boards):
        try:
            found = read()
        except (PillmError, OSError):
            continue
        for entry in found:
            yield Offer(f"{entry.kind.capitalize()}: {entry.name}", entry.about, partial(app.open_entry, entry))
    yield from _runs(app)
    for name in app.theme_names():
        yield Offer(f"Theme: {name}", "", partial(app.use_theme, name))


def _runs(app: PillmApp) -> Iterator[Offer]:
    from pillm.tui.runs.find import runs

    try:
        found = runs()
    except (PillmError, OSError):
        return
    for run in found[:200]:
        yield Offer(f"Run: {run.name}", f"{run.state} {run.detail}".strip(), partial(_show, app, run.run_dir))


def _show(app: PillmApp, run_dir: Path) -> None:
    from pillm.tui.runs.screen import show

    show(app, run_dir)


class Palette(Provider):
    """What the palette asks."""

    async def startup(self) -> None:
        """Read what there is, in a thread."""
        self._offers = await asyncio.to_thread(lambda: list(offers(cast("PillmApp", self.app))))

    async def discover(self) -> Hits:
        """Everything, before a word is typed."""
        for offer in self._offers:
            yield DiscoveryHit(Content(offer.words), offer.do, text=offer.words, help=escape(offer.about) or None)

    async def search(self, query: str) -> Hits:
        """What fits the words."""
        matcher = self.matcher(query)
        for offer in self._offers:
            if (score := matcher.match(f"{offer.words} {offer.about}")) > 0:
                shown = _highlighted(matcher, offer.words)
                yield Hit(score, shown, offer.do, text=offer.words, help=escape(offer.about) or None)


def _highlighted(matcher: Matcher, words: str) -> Content:
    """The words with what fits marked. `Matcher.highlight` would take a bracket in a name for markup."""
    found = Content(words)
    for place in matcher.fuzzy_search.match(matcher.query, words)[1]:
        if not words[place].isspace():
            found = found.stylize(matcher.match_style, place, place + 1)
    return found
