"""The table of formats in ``docs/running.md`` is that of the registry."""

import re
from pathlib import Path

from repblocks.deployment.formats import get_format, list_formats

PAGE = Path(__file__).parents[2] / "docs" / "running.md"
ROW = re.compile(r"^\| `(\w+)` \| (.+?) \| (.*?) ?\| (.*?) ?\|", re.M)


def test_the_table_lists_every_format():
    listed = {
        name: (tuple(re.findall(r"`(.+?)`", files)), extra.strip("`"), code == "yes")
        for name, files, extra, code in ROW.findall(PAGE.read_text(encoding="utf-8"))
    }
    known = {name: get_format(name) for name in list_formats()}
    assert listed == {n: (form.files, form.extra, form.executable) for n, form in known.items()}
