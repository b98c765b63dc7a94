"""How torch's products are split among threads, made the same in every process."""

from __future__ import annotations

import torch


def fix() -> None:
    """Let every product use all threads that torch has, from now on.

    Until somebody sets their number, MKL takes fewer for small products as it sees fit, and sums come out
    otherwise in the last bits: a run that was killed would not end as one that was not.
    """
    torch.set_num_threads(torch.get_num_threads())
