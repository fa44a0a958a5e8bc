"""Shared set-up: helper modules beside the tests, one thread a process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hypothesis

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

hypothesis.settings.register_profile("weft", deadline=None)  # no test measures time
hypothesis.settings.load_profile("weft")
