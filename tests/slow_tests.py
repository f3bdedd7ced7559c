# SPDX-License-Identifier: Apache-2.0
"""Which tests are slow, by a run of all of them:

    python -m pytest --times times tests
    python tests/slow_tests.py times

Writes ``slow_tests.txt``: tests that take longer than a second, and all that share a fixture that does.
"""

import json
import sys
from collections import Counter
from pathlib import Path

from conftest import SLOW

LONGEST = 1.0  # seconds of a fast test, and of the fixtures that it needs


def main(folder: Path) -> None:
    """Write the list."""
    lines = [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    setups = [(set(fixtures), seconds) for _, when, seconds, fixtures in lines if when == "setup"]
    needed = Counter(name for fixtures, _ in setups for name in fixtures)
    slow_fixtures = set()
    for fixtures, seconds in setups:
        # The slow one among several is that which only slow set-ups need, or the one that fewest tests share.
        if seconds > LONGEST and fixtures and not fixtures & slow_fixtures:
            slow_fixtures.add(min(fixtures, key=lambda name: (needed[name], name)))
    slow = {
        name
        for name, when, seconds, fixtures in lines
        if (when == "call" and seconds > LONGEST) or set(fixtures) & slow_fixtures
    }
    SLOW.write_text("\n".join(sorted(slow)) + "\n", encoding="utf-8")
    fast = sum(seconds for name, _, seconds, _ in lines if name not in slow)
    print(f"{len(slow)} slow tests; the others take {fast:.0f} s; slow fixtures: {', '.join(sorted(slow_fixtures))}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
