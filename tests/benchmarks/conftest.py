"""The scripts of benchmarks/ import each other as they do when they are run: by their own names."""

import sys

from tests.launching import ROOT

sys.path.append(str(ROOT / "benchmarks"))
