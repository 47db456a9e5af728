"""The mark for nightly tests, which take minutes, or whose processes wait for each other and may fail on busy cores."""

import os

import pytest

at_night = pytest.mark.skipif(not os.environ.get("IMPRINT_NIGHTLY"), reason="takes minutes; set IMPRINT_NIGHTLY=1")
