"""Loading models without the bars that transformers draws by itself."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Reading a GGUF file draws a progress bar that no setting of transformers turns off; here it goes nowhere.

    Errors come as exceptions, so nothing else that matters is written to stderr meanwhile.
    """
    with contextlib.redirect_stderr(io.StringIO()):
        yield
