"""Models behind an OpenAI-compatible endpoint: the client, what it may spend, and what it has drawn."""
