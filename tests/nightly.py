"""Tests of minutes, and of processes that wait for each other, which busy cores can make fail: at night."""

import os

import pytest

at_night = pytest.mark.skipif(not os.environ.get("IMPRINT_NIGHTLY"), reason="takes minutes; set IMPRINT_NIGHTLY=1")
