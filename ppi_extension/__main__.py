"""``python -m ppi_extension``."""

from ppi_extension.cli import main

main()
