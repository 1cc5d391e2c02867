"""The HTTP API: scores, features and ingest over HTTP. ``python -m services.api`` runs it; docs/api.md says what it promises."""
