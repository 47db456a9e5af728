"""Text messages on a node."""

from __future__ import annotations

from comfy_api.latest import io
from server import PromptServer


def tell(node: type[io.ComfyNode], message: str) -> None:
    """Show a line of text on the node that is running; it needs `io.Hidden.unique_id` in its schema."""
    if node.hidden and node.hidden.unique_id:
        PromptServer.instance.send_progress_text(message, node.hidden.unique_id)
