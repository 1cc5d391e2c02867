"""What led to a thing and what came of it: from an event to the release that it helped to bring about, and back, by ids."""
