# SPDX-License-Identifier: Apache-2.0
"""``python -m gsbids``."""

from gsbids.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
