"""`python -m tinyllama` is the command `tinyllama`."""

import sys

from .cli.main import main

sys.exit(main())
