"""Captions from a model behind an address: any server that answers as OpenAI's chat completions do."""

from __future__ import annotations

import base64
import json
import os
import time
import urllib.error
import urllib.request

from PIL import Image

from imprint.errors import ImprintError

from .shards import ATTEMPTS, encoded

REQUEST = "Describe this photo in one short sentence: what is in it, and where. Answer with the sentence alone."
SIDE = 512  # pixels of what is sent
MOST_TOKENS = 80  # of an answer
PATIENCE = 120  # seconds for an answer
KEY = "OPENAI_API_KEY"
"""Environment variable that holds the server's key, where it asks for one."""


def describe(picture: Image.Image, address: str, model: str) -> str:
    """A caption of an RGB picture, on one line.

    address: the server's, such as http://localhost:8000/v1. Raises `ImprintError` where it gives no caption, after
    three attempts.
    """
    small = picture.copy()
    small.thumbnail((SIDE, SIDE), Image.LANCZOS)
    sent = "data:image/jpeg;base64," + base64.b64encode(encoded(small, "JPEG", quality=90)).decode()
    content = [{"type": "text", "text": REQUEST}, {"type": "image_url", "image_url": {"url": sent}}]
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": MOST_TOKENS}
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(KEY):
        headers["Authorization"] = f"Bearer {key}"
    url = f"{address.rstrip('/')}/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    for attempt in range(ATTEMPTS):
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                caption = " ".join(json.load(answer)["choices"][0]["message"]["content"].split())
            if not caption:
                raise ValueError("an empty answer")
            return caption
        except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            refused = isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500 and error.code != 429
            if attempt == ATTEMPTS - 1 or refused:
                raise ImprintError(
                    f"{url} gave no caption ({error!r}); check --describe, --describe-model and, where the server asks "
                    f"for a key, {KEY}; finished shards are kept"
                ) from error
            time.sleep(2**attempt)
