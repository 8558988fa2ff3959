"""``python -m dynahugd``."""

import sys

from dynahugd.cli import main

sys.exit(main())
