"""`make bench`: what meta-learning costs, side by side in one run. Times are ratios first; machines differ."""

from __future__ import annotations

import argparse

from tests.bench import pretraining


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=32, help="encoder width (32 is the paper's)")
    parser.add_argument("--batch", type=int, default=64, help="records a step")
    parser.add_argument(
        "--steps", type=int, default=20, help="steps of the whole-loop rows, a multiple of 10"
    )
    arguments = parser.parse_args()
    pretraining.run(arguments.width, arguments.batch, arguments.steps)


if __name__ == "__main__":
    main()
