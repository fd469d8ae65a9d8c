"""What all tests share."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from browser import browser, lab, notebook7  # noqa: E402, F401  (fixtures)
