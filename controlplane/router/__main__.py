"""``python -m controlplane.router --state-dir DIR``."""

import sys

from controlplane.router.process import main

if __name__ == "__main__":
    sys.exit(main())
