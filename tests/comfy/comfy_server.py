"""A real ComfyUI in its own folder, and a client that talks to it as a front end does."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
PACK = "imprint-nodes"  # a user's folder may have any name
START_SECONDS = 240


class Server:
    """A running ComfyUI. base: its base directory; log: what it prints."""

    def __init__(self, base: Path, url: str, log: Path):
        self.base, self.url, self.log = base, url, log

    def request(self, path: str, data: dict | None = None) -> bytes:
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read()

    def get(self, path: str) -> dict:
        return json.loads(self.request(path))

    def run(self, prompt: dict, seconds: float = 120) -> dict:
        """Run a prompt in API format to its end; returns its entry in the history."""
        try:
            prompt_id = json.loads(self.request("/prompt", {"prompt": prompt}))["prompt_id"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"the prompt was refused: {error.read().decode()}") from error
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.1)
        raise AssertionError(f"the prompt did not end in {seconds} s; the log is {self.log}")

    def pictures(self, prompt: dict, seconds: float = 120) -> list[Image.Image]:
        """Run a prompt; returns the pictures that it saved, in the order of their nodes."""
        entry = self.run(prompt, seconds)
        assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
        outputs = sorted(entry["outputs"].items(), key=lambda item: int(item[0]))
        saved = [image for _, out in outputs for image in out.get("images", ()) if image["type"] == "output"]
        return [
            Image.open(self.base / "output" / each["subfolder"] / each["filename"]).convert("RGB") for each in saved
        ]

    def picture(self, prompt: dict) -> np.ndarray:
        """Run a prompt that saves one picture; returns its pixels (H, W, 3)."""
        (picture,) = self.pictures(prompt)
        return np.asarray(picture)

    def import_seconds(self) -> float:
        """The import time of this pack that ComfyUI reports."""
        (seconds,) = re.findall(rf"([\d.]+) seconds.*{PACK}", self.log.read_text())
        return float(seconds)


def make_base(base: Path, name: str = PACK) -> Path:
    """Make a base directory for ComfyUI with this pack under that folder name, a probe, and no models."""
    for folder in ("custom_nodes", "models/imprint", "input", "output", "temp", "user"):
        (base / folder).mkdir(parents=True)
    (base / "custom_nodes" / name).symlink_to(ROOT, target_is_directory=True)
    shutil.copytree(Path(__file__).parent / "probe_pack", base / "custom_nodes" / "imprint_probe")
    return base


@contextmanager
def running(comfyui: Path, python: str, base: Path, *arguments: str) -> Iterator[Server]:
    """Run ComfyUI on a free port until the block ends.

    comfyui: a checkout. python: the Python with its requirements. base: from `make_base`. Raises `RuntimeError` with
    the end of the log if it does not start.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base)]
    command += ["--database-url", "sqlite:///:memory:", "--disable-auto-launch", *arguments]
    log = base / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=comfyui, stdout=out, stderr=out)
        try:
            server = Server(base, f"http://127.0.0.1:{port}", log)
            end = time.monotonic() + START_SECONDS
            while True:
                try:
                    server.get("/system_stats")
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > end:
                        raise RuntimeError(f"ComfyUI did not start:\n{log.read_text()[-4000:]}") from None
                    time.sleep(0.3)
            yield server
        finally:
            process.terminate()
            process.wait(30)
