"""A picture of every augmentation: `python examples/06_augmentation_gallery.py [FOLDER] [--data DATA]`. Seconds on a laptop.

Writes `FOLDER/operations.png`, each operation of `ecgmeta.augment.functional` on one record, and `FOLDER/rotation.png`, one of
them on twelve-lead paper. The record is synthetic, and so is what `real_noise` mixes in; with DATA, a folder that holds `ludb/`
and `nstdb/`, they are LUDB's first record and the electrode motion of the MIT-BIH stress test.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.signal import resample_poly
from torch import Tensor

from ecgmeta.augment import functional
from ecgmeta.augment.functional import OPERATIONS, Operation
from ecgmeta.data import LUDB, SyntheticCohort
from ecgmeta.data.leads import STANDARD_LEADS
from ecgmeta.data.nuisances import Nuisances
from ecgmeta.report import plot_ecg

FS = 500.0
SHOWN = ("I", "II", "V2")
# Where the typical magnitude would be too faint for a thumbnail.
STRONGER = {
    "band_stop": 1.0,
    "electrode_rotation": 30.0,
    "electrode_scale": 0.4,
    "fourier_surrogate": 0.25,
    "gain": 0.4,
    "lead_dropout": 0.5,
    "lead_gain": 0.5,
    "mixup": 0.8,
    "paper_warp": 3.0,
    "powerline": 0.06,
    "real_noise": 0.7,
    "time_mask": 1.5,
    "white_noise": 0.2,
}
# Whose noise happens to reach the leads shown.
SEEDS = {"electrode_motion": 260, "electrode_rotation": 4, "electrode_scale": 4, "real_noise": 260}
SETTINGS = {"band_stop": {"low": 5.0, "high": 15.0, "width": 3.0}}
# The whole record where something happens once in it; else 3 s from its middle.
WHOLE = {
    *("baseline_wander", "cutmix", "electrode_motion", "paper_layout", "random_resized_crop", "real_noise"),
    "time_mask",
}


def records(data: Path | None) -> Tensor:
    """Two records (2, 12, samples) in mV; the second is what the first is mixed with."""
    if data is not None:
        return torch.stack([LUDB(data / "ludb", fs=FS, labels="none")[row][0] for row in (0, 1)])
    return torch.from_numpy(SyntheticCohort(2, fs=FS, seed=3, nuisances=Nuisances.none()).signals[:]).float()


def noise_of(spec: Operation, x: Tensor, data: Path | None, generator: torch.Generator) -> Tensor:
    if spec.noise is not None:
        return spec.draw(x, generator)
    if data is None:
        silence, motion = torch.zeros_like(x), OPERATIONS["electrode_motion"]
        return functional.electrode_motion(silence, 1.0, noise=motion.draw(x, generator), fs=FS)
    with np.load(data / "nstdb" / "nstdb_noise_360hz_int16_200adu_per_mV.npz") as file:
        recorded = file["em"][: 360 * 60, 0] / 200
    resampled = torch.from_numpy(resample_poly(recorded, int(FS), 360)).float()
    return resampled[: len(x) * x.shape[-1]].reshape(len(x), 1, -1)


def draw(axes: Axes, spec: Operation, x: Tensor, augmented: Tensor, magnitude: float) -> None:
    samples = x.shape[-1]
    middle, reach = samples // 2, samples // 2 if spec.name in WHOLE else round(1.5 * FS)
    span = slice(middle - reach, middle + reach)
    time = np.arange(samples)[span] / FS
    # Each lead below the one before, as far as the record's own peaks and a margin need.
    edge = 0.0
    for lead in SHOWN:
        original, changed = (each[0, STANDARD_LEADS.index(lead), span] for each in (x, augmented))
        place = edge - 1.2 * float(original.max()) - 0.2
        edge = place + 1.2 * float(original.min())
        axes.plot(time, original + place, color="#c2c8ce", lw=2.2)
        axes.plot(time, changed + place, color="#0072B2", lw=0.8)
        axes.text(time[0], place, f"{lead} ", fontsize=8, ha="right", va="center")
    unit = "" if spec.unit == "1" else f" {spec.unit}"
    axes.set_title(f"{spec.name}  {magnitude:g}{unit}", fontsize=10, fontweight="bold", loc="left")
    axes.set(ylim=(edge - 0.3, 0.0), yticks=[], xlim=(time[0], time[-1]))
    axes.tick_params(labelsize=6)
    axes.spines[["top", "right", "left"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description="A picture of every augmentation.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("gallery"))
    parser.add_argument("--data", type=Path, help="a folder that holds ludb/ and nstdb/")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    x = records(chosen.data)

    figure = Figure(figsize=(16, 22), layout="constrained")
    panels = figure.subplots(-(-len(OPERATIONS) // 4), 4)
    for axes in panels.flat[len(OPERATIONS) :]:
        axes.remove()
    for axes, spec in zip(panels.flat, OPERATIONS.values(), strict=False):
        magnitude = STRONGER.get(spec.name, spec.typical)
        settings = SETTINGS.get(spec.name, {}) | ({"fs": FS} if spec.timed else {})
        noise = noise_of(spec, x, chosen.data, torch.Generator().manual_seed(SEEDS.get(spec.name, 24)))
        augmented = getattr(functional, spec.name)(x, magnitude, noise=noise, **settings)
        draw(axes, spec, x, augmented, magnitude)
        change = float((augmented - x)[0].square().mean().sqrt())
        print(f"{spec.name} at {magnitude:g}, unit {spec.unit}: changes the record by {change:.3f} mV RMS")
        if spec.name == "electrode_rotation":
            sheet = plot_ecg(
                x[0].numpy(),
                FS,
                STANDARD_LEADS,
                overlay=augmented[0].numpy(),
                title=f"{spec.name}, {magnitude:g} degrees",
            )
            sheet.savefig(chosen.folder / "rotation.png", dpi=110)
    figure.supxlabel(
        "time in s · grey: the record, blue: augmented · each panel has its own scale", fontsize=11
    )
    figure.savefig(chosen.folder / "operations.png", dpi=90)
    print(f"{len(OPERATIONS)} operations drawn in {chosen.folder / 'operations.png'}")


if __name__ == "__main__":
    main()
