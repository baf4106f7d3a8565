"""The way from a run handler to an inference backend: messages, placement and the client."""
