"""Themes: dark, light, and one without colours. Every state is a word or a sign as well as a colour."""

from __future__ import annotations

from textual.theme import Theme

DARK, LIGHT, PLAIN = "pillm-dark", "pillm-light", "pillm-no-colour"

THEMES = (
    Theme(
        DARK, primary="#2a6f97", secondary="#61a5c2", accent="#e9c46a", foreground="#e6e6e6", background="#14181d",
        surface="#1b2128", panel="#252d36", success="#7fb069", warning="#e9a23b", error="#e05a5a", dark=True,
    ),
    Theme(
        LIGHT, primary="#8fc1de", secondary="#2a6f97", accent="#8a5a00", foreground="#1a1a1a", background="#fbfbf8",
        surface="#f1f1ec", panel="#e4e4dd", success="#2f6b1f", warning="#8a5200", error="#a61b1b", dark=False,
    ),
    Theme(
        PLAIN, primary="#5f5f5f", secondary="#bcbcbc", accent="#ffffff", foreground="#eeeeee", background="#000000",
        surface="#121212", panel="#262626", success="#d0d0d0", warning="#e4e4e4", error="#ffffff", dark=True,
    ),
)  # fmt: skip
