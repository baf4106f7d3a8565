"""Spans of rollouts for OpenTelemetry: one connected tree for each rollout, off by default.

Reading order: spans (ids and the record), rollouts (the broker's part, from its instructions),
attempts (the stage host's part: turns, tools, sandboxes), export (to a collector).

Ids are hashes of what a span is about, so broker and hosts agree on them and no context travels.
"""
