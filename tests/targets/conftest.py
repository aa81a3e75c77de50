"""Lets the tests of this folder import what they share: tiny ONNX graphs and a runtime that sleeps."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
