"""`python -m hyperflax COMMAND ...` is `hyperflax COMMAND ...`."""

import sys

from hyperflax.cli.main import main

sys.exit(main())
