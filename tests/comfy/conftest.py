"""A real ComfyUI for the tests of the nodes.

COMFYUI_PATH: a ComfyUI checkout. COMFYUI_PYTHON: the Python with ComfyUI's requirements, by default this one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PACK = "imprint-nodes-test"  # a user's folder may have any name
START_SECONDS = 240


@pytest.fixture(scope="session")
def comfyui() -> Path:
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        pytest.skip("COMFYUI_PATH is not set; set it to a ComfyUI checkout to test the nodes")
    if not (Path(path) / "main.py").is_file():
        pytest.fail(f"COMFYUI_PATH is {path}, which holds no ComfyUI (no main.py)")
    return Path(path)


@pytest.fixture(scope="session")
def python() -> str:
    """The Python that runs ComfyUI."""
    return os.environ.get("COMFYUI_PYTHON", sys.executable)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base directory for ComfyUI with this pack, a probe, and no models but the shipped one."""
    base = tmp_path_factory.mktemp("comfyui")
    for name in ("custom_nodes", "models/imprint", "input", "output", "temp", "user"):
        (base / name).mkdir(parents=True)
    (base / "custom_nodes" / PACK).symlink_to(ROOT, target_is_directory=True)
    shutil.copytree(Path(__file__).parent / "probe_pack", base / "custom_nodes" / "imprint_probe")
    return base


class Server:
    """A running ComfyUI, spoken to as a front end does."""

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
        """Run a prompt in API format to its end; its entry in the history."""
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

    def picture(self, prompt: dict) -> np.ndarray:
        """Run a prompt that saves one picture; its pixels (H, W, 3)."""
        entry = self.run(prompt)
        assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
        (saved,) = (image for out in entry["outputs"].values() for image in out["images"] if image["type"] == "output")
        return np.asarray(Image.open(self.base / "output" / saved["subfolder"] / saved["filename"]).convert("RGB"))

    def import_seconds(self) -> float:
        """What ComfyUI says the import of this pack took."""
        (seconds,) = re.findall(rf"([\d.]+) seconds.*{PACK}", self.log.read_text())
        return float(seconds)


@pytest.fixture(scope="session")
def server(comfyui: Path, python: str, base: Path) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base)]
    command += ["--database-url", "sqlite:///:memory:", "--disable-auto-launch"]
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
                        pytest.fail(f"ComfyUI did not start:\n{log.read_text()[-4000:]}")
                    time.sleep(0.3)
            yield server
        finally:
            process.terminate()
            process.wait(30)
