"""A real ComfyUI for the tests of the nodes.

COMFYUI_PATH: a ComfyUI checkout. COMFYUI_PYTHON: the Python with ComfyUI's requirements, by default this one.
COMFYUI_FRONT_END: the folder `static` of another comfyui-frontend-package than the one that ComfyUI pins.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from comfy_server import Server, make_base, running


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
    return make_base(tmp_path_factory.mktemp("comfyui"))


@pytest.fixture(scope="session")
def server(comfyui: Path, python: str, base: Path) -> Iterator[Server]:
    front_end = os.environ.get("COMFYUI_FRONT_END")
    with running(comfyui, python, base, *(["--front-end-root", front_end] if front_end else [])) as server:
        yield server


@pytest.fixture(scope="session")
def object_info(server: Server) -> dict:
    """The server's description of its nodes."""
    return server.get("/object_info")
