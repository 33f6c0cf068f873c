"""`python -m wav2vec2_conformer`."""

import sys

from .cli import main

sys.exit(main())
