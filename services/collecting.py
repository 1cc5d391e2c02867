"""`headrace apply --collect`: removes what nobody reads any more. Who calls holds ``feature_repo.versions.exclusive``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from feature_repo.use_cases import fed_views
from feature_repo.version_keys import Removed, VersionKeys
from feature_repo.versions import collected, read_registry, retired, view_of, write_registry
from schemas.errors import JobError
from schemas.settings import Settings

__all__ = ["collect"]

STILL_S = 7.0
"""Workers look every two seconds which versions they feed; one that has stood still for three looks is let go of."""
PATIENCE_S = 120.0


def collect(settings: Settings, redis: str, *, dry_run: bool = False, tell: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Remove the keys of versions whose grace is over, by the stream's time, and what a late worker left of earlier ones.

    Raises JobError where somebody still writes to one of them: nothing of it is removed then.
    """
    registry, keys = read_registry(settings), VersionKeys(redis)
    try:
        now_ms = keys.arrived_ms(fed_views(settings)) or 0
        over = retired(registry, now_ms)
        if dry_run:
            left = keys.sizes([*over, *registry.names("collected")])
            sizes = {name: asdict(size) for name, size in left.items() if size.keys or name in over}
            return {"dry_run": True, "now_ms": now_ms, "versions": over, "sizes": sizes, "removed": []}
        if over:
            registry = write_registry(settings, registry, collected(registry, over))
        views = [view_of(registry.versions[name].definition) for name in registry.names("collected")]
        marked = [view for view in views if keys.marks(view)]
        if marked and not keys.stand_still(marked, STILL_S, PATIENCE_S):
            raise JobError(f"{', '.join(view.versioned_name for view in marked)} are still written to",
                           hint="do all workers see the same home folder? then run it again")
        removed: list[Removed] = []
        for view in views:
            tell(f"removing {view.versioned_name}")
            removed.append(keys.remove(view))
        return {"dry_run": False, "now_ms": now_ms, "versions": over, "removed": [asdict(one) for one in removed if one.keys]}
    finally:
        keys.close()
