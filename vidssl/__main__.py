"""``python -m vidssl`` is the command ``vidssl``."""

import sys

from vidssl.cli.main import main

sys.exit(main())
