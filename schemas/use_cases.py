"""The use cases whose records headrace knows; ``feature_repo.use_cases`` says what it makes of them. Append, never reorder: the
place of a source in this list orders records of one arrival millisecond."""

from __future__ import annotations

from schemas import churn, fraud

__all__ = ["TRAFFIC"]

TRAFFIC = (fraud.TRAFFIC, churn.TRAFFIC)
