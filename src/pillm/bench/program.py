"""`pi_bench.py` as a child: its arguments, its document, its errors as ours."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pillm.bench.options import BenchOptions
from pillm.core.errors import MissingError, NetworkError, PillmError, ResourceError, UsageError
from pillm.core.follow import Ended

PATH = Path(__file__).with_name("pi_bench.py")
_KINDS: dict[int, type[PillmError]] = {2: UsageError, 3: MissingError, 4: NetworkError, 5: ResourceError}
_MEASURED = (0, 1, 5)
"""Exit codes that a document may come with: all is well; a gate failed or nothing was measured; it could not be kept there."""


def arguments(options: BenchOptions) -> list[str]:
    """The part of the command line that says what to measure and how."""
    said = [
        "--json", "--progress=json", "--wait",
        f"--measure={','.join(options.measure)}", f"--prompt-tokens={options.prompt_tokens}",
        f"--gen-tokens={options.gen_tokens}", f"--depth={_listed(options.depth)}", f"--repetitions={options.repetitions}",
        f"--requests={options.requests}", f"--context={options.context}", f"--type-k={options.type_k}",
        f"--type-v={options.type_v}", f"--limit={options.limit}",
    ]  # fmt: skip
    for name in ("threads", "splits"):
        if values := getattr(options, name):
            said.append(f"--{name}={_listed(values)}")
    for name in ("min_tps", "max_rss", "max_ttft_ms"):
        if (value := getattr(options, name)) is not None:
            said.append(f"--{name.replace('_', '-')}={value}")
    return said


def _listed(values: Iterable[object]) -> str:
    return ",".join(map(str, values))


def document_of(ended: Ended) -> bytes:
    """The document. Raises the error that the program ended with, in its own words."""
    if ended.code in _MEASURED and ended.stdout.lstrip().startswith(b"{"):
        return ended.stdout
    kind = _KINDS.get(ended.code, PillmError)
    message = "; ".join(ended.errors) or (ended.noise[-1] if ended.noise else "it did not say why")
    text, _, hint = message.partition("; ")
    raise kind(text if ended.errors else f"pi_bench ended with exit code {ended.code}: {text}", hint)
