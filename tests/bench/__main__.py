"""`make bench`: what meta-learning costs, side by side in one run. Times are ratios first; machines differ.

`python -m tests.bench augment`: what augmentation costs beside the constructions in use; the second part of `make bench`.
`python -m tests.bench data`: what reading records costs; it is the first part of `make bench`.
`python -m tests.bench graphs`: what protein graphs cost, beside PyG's in-memory data set.
`python -m tests.bench tasks`: what thousands of task weights cost on protein graphs.
`python -m tests.bench quality`: how noisy v is from few labels, at equal time, for each fine-tuning head.
"""

from __future__ import annotations

import argparse

from tests.bench import augmentation, data, graphs, pretraining, quality, tasks


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", nargs="?", choices=("augment", "cost", "data", "graphs", "quality", "tasks"), default="cost"
    )
    parser.add_argument(
        "--width", type=int, help="encoder width; 32 (the paper's) for cost, 8 for quality, 300 for tasks"
    )
    cost = parser.add_argument_group("cost")
    cost.add_argument(
        "--batch", type=int, default=64, help="records a step; plain steps at 4 times as many, too"
    )
    cost.add_argument("--rounds", type=int, default=3, help="turns of every row")
    cost.add_argument("--steps", type=int, default=10, help="steps of the whole-loop rows, a multiple of 10")
    cost.add_argument(
        "--route", choices=tuple(pretraining.ROUTES), default="chosen", help="our second-order products"
    )
    cost.add_argument("--full", action="store_true", help="every row at the large batch, too")
    cost.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where both sides run")
    parser.add_argument("--records", type=int, default=5000, help="records that data generates")
    parser.add_argument("--tasks", type=int, default=5000, help="task weights")
    parser.add_argument("--graphs", type=int, default=32, help="ego graphs a batch, of tasks")
    arguments = parser.parse_args()
    if arguments.what == "quality":
        quality.run(arguments.width or 8)
        return
    if arguments.what == "tasks":
        tasks.run(tasks.Setting(arguments.graphs, arguments.tasks, arguments.width or 300), arguments.rounds)
        return
    if arguments.what == "augment":
        augmentation.run()
        return
    if arguments.what == "graphs":
        graphs.run()
        return
    if arguments.what == "data":
        data.run(arguments.records)
        return
    pretraining.run(
        arguments.width or 32,
        arguments.batch,
        arguments.steps,
        arguments.rounds,
        arguments.route,
        arguments.full,
        arguments.device,
    )


if __name__ == "__main__":
    main()
