"""Monitors on the stream: partitions are counted side by side (``counts``), their windows judged in one order (``monitor``)."""
