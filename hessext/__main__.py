"""`python -m hessext` is the command `hessext`."""

import sys

from .cli import main

sys.exit(main())
