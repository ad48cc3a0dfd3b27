"""What mkdocs calls while it builds the site."""

import re
from typing import Any

CODE = re.compile(r"<code>[^<]*</code>")
OPTION = re.compile(r"(?<![\w-])--?[a-zA-Z][\w.]*")


def on_page_content(html: str, **_: Any) -> str:
    """Keep the hyphens of an option such as `--config` and its name on one line, which CSS alone cannot."""
    return CODE.sub(lambda code: OPTION.sub(r'<span class="option">\g<0></span>', code[0]), html)
