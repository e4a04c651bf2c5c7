"""``python -m ecgmeta``."""

from ecgmeta.cli import main

if __name__ == "__main__":
    main()
