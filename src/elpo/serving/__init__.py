"""The project's engine behind an OpenAI-compatible chat-completions server."""
