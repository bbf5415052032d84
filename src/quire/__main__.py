"""`python -P -m quire`: the command line. (-P keeps the working directory off the module path.)"""

import sys

from quire.cli import main

sys.exit(main())
