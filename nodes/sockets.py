"""The pack's own types on a graph's wires."""

from comfy_api.latest import io

Adapter = io.Custom("IMPRINT_ADAPTER")
"""A `models.Adapter`."""

Identity = io.Custom("IMPRINT_IDENTITY")
"""Tokens of one object's views: a float32 tensor (1, views, tokens, width)."""
