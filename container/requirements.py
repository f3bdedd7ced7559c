# SPDX-License-Identifier: Apache-2.0
"""Print what setup.cfg asks for, one requirement a line: ``python requirements.py [EXTRA ...]``."""

import configparser
import sys
from pathlib import Path

setup = configparser.ConfigParser()
setup.read_string(Path("setup.cfg").read_text(encoding="utf-8"))
wanted = [setup["options"]["install_requires"], *(setup["options.extras_require"][extra] for extra in sys.argv[1:])]
print("\n".join(line for text in wanted for line in text.splitlines() if line and not line.startswith("#")))
