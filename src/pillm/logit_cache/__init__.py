"""A cache of a teacher's next-token distributions, kept sparse so that their expectation is exact.

Needs numpy and msgspec only. The format is in docs/logit-cache.md.
"""

from pillm.logit_cache.manifest import Manifest, Shard
from pillm.logit_cache.reader import Cache, check, open_cache, verify
from pillm.logit_cache.rows import Rows, Targets

__all__ = ["Cache", "Manifest", "Rows", "Shard", "Targets", "check", "open_cache", "verify"]
