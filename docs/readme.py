"""Makes README.md from nbs/index.ipynb: hidden cells left out, links bent to where the notebooks lie."""

import re
import sys
from pathlib import Path

from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent


def readme():
    """The text of README.md."""
    config = Config()
    config.RegexRemovePreprocessor.patterns = [r"#\|\s*hide"]
    config.NbConvertBase.display_data_priority = ["text/markdown", "text/plain"]
    config.TemplateExporter.exclude_input = True
    text, _ = MarkdownExporter(config=config).from_filename(str(ROOT / "nbs" / "index.ipynb"))
    text = re.sub(r"\]\((?!https?:)([\w/]+\.ipynb)\)", r"](nbs/\1)", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "README.md").write_text(readme())
