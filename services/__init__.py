"""Who is alive: embedded runtime, scorer, simulator, and the ``headrace`` command."""
