"""The shipped home-assistant dataset: hand-written material, and the seeded generator that composes it.

`python -m pillm.data.home_assistant` rewrites the shipped files, byte for byte. See docs/home-assistant.md.
"""
