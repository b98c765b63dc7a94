"""Floor 1: the pinned llama.cpp: fetch, build, typed wrappers of its tools."""
