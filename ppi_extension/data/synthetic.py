"""A planted problem: protein graphs in which it is known which pre-training tasks serve fine-tuning.

Genes live in communities (complexes, pathways). Community k has a position t ∈ [−1, 1]⁷; an edge shows evidence c with
probability (1 + contrast · t_c) / 2, t the mean of its two genes' positions. So a network that knows nothing of a gene sees t
through the edges around it. What genes do depends on products t_a · t_b, which no linear function of edge counts tells:

- *useful* pre-training tasks and the fine-tuning tasks mix the same few products;
- *other* tasks mix as many products of other pairs: as easily learned, and enough of them to fill a small encoder;
- *density* tasks ask how many partners the genes of a community have;
- *noise* tasks ask for nothing and can only be memorised.

All tasks are equally frequent and equally noisy, and every species has communities of its own. With uniform weights most of a
small encoder goes to tasks that do not matter, and fine-tuning on few genes has to find the rest among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.progress import Report
from ecgmeta.runtime.seeds import numpy_generator
from ppi_extension.data.builder import BuildSettings, build
from ppi_extension.data.species import Labels, SourceData, SpeciesGraph

if TYPE_CHECKING:
    from ppi_extension.data.store import EgoStore

CHANNELS = ("neighborhood", "fusion", "cooccurence", "coexpression", "experimental", "database", "textmining")
PAIRS = tuple(combinations(range(len(CHANNELS)), 2))
SHARED = ((0, 1), (2, 3), (4, 5))  # of these the fine-tuning tasks are made; no channel stands in two
KINDS = ("useful", "other", "density", "noise")
FANOUT = 5  # of ego graphs: a community is small

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PlantedSettings:
    """Sizes of the planted problem.

    Attributes:
        species, genes: graphs, and genes of each.
        community: mean genes of a community.
        partners: mean edges of a gene inside its community; a community has 0.5 to 1.5 times as many.
        outside: edges between any two genes, as a share of those inside communities.
        contrast: how far evidence follows position, 0 to 1.
        factors: products that a task mixes, 1 to 3.
        finetune: fine-tuning tasks.
        useful, other, density, noise: pre-training tasks of each kind.
        label_noise: standard deviation of what is added to a score of standard deviation 1.
        prevalence: share of genes that have a function.
    """

    species: int = 3
    genes: int = 600
    community: int = 15
    partners: float = 8.0
    outside: float = 0.1
    contrast: float = 0.9
    factors: int = 3
    finetune: int = 8
    useful: int = 8
    other: int = 96
    density: int = 4
    noise: int = 36
    label_noise: float = 0.3
    prevalence: float = 0.3

    def __post_init__(self) -> None:
        least = min(self.other, self.density, self.noise)
        for field, value, fits, expected in (
            ("species", self.species, self.species >= 1, "at least 1"),
            ("community", self.community, self.community >= 3, "at least 3"),
            ("genes", self.genes, self.genes >= 2 * self.community, "at least two communities"),
            ("partners", self.partners, self.partners > 0, "above 0"),
            ("outside", self.outside, self.outside >= 0, "at least 0"),
            ("contrast", self.contrast, 0 <= self.contrast <= 1, "0 to 1"),
            ("factors", self.factors, 1 <= self.factors <= len(SHARED), f"1 to {len(SHARED)}"),
            ("finetune", self.finetune, self.finetune >= 1, "at least 1"),
            ("useful", self.useful, self.useful >= 1, "at least 1"),
            ("other, density, noise", least, least >= 0, "at least 0"),
            ("label_noise", self.label_noise, self.label_noise >= 0, "at least 0"),
            ("prevalence", self.prevalence, 0 < self.prevalence < 1, "between 0 and 1"),
        ):
            if not fits:
                raise InputError("planted problem", field, value, expected)


@dataclass(frozen=True, eq=False)
class Planted:
    """The problem, and what is known of it.

    Attributes:
        data: graphs and labels, as any source gives them.
        kinds: pre-training term -> "useful", "other", "density" or "noise".
        finetune_terms: the fine-tuning tasks.
    """

    data: SourceData
    kinds: dict[str, str]
    finetune_terms: tuple[str, ...]

    @property
    def pretrain_terms(self) -> tuple[str, ...]:
        return tuple(self.kinds)

    @property
    def useful(self) -> NDArray[np.bool_]:
        """(T,) which pre-training tasks serve the fine-tuning tasks."""
        return np.array([kind == "useful" for kind in self.kinds.values()])


def planted(settings: PlantedSettings | None = None, seed: int = 0) -> Planted:
    """The graphs, labels and truth of one seed."""
    how = settings or PlantedSettings()
    counts = {"finetune": how.finetune, **{kind: getattr(how, kind) for kind in KINDS}}
    kinds = {f"{kind}_{i:02d}": kind for kind, count in counts.items() for i in range(count)}
    mixtures = _mixtures(how, list(kinds.values()), numpy_generator(seed, "planted", "tasks"))
    graphs, labels = [], []
    for number in range(how.species):
        rng = numpy_generator(seed, "planted", "species", number)
        position, density, member = _communities(how, rng)
        graph = _graph(how, f"species_{number}", number + 1, position, density, member, rng)
        known = [_standard(position[:, a] * position[:, b]) for a, b in PAIRS] + [_standard(density)]
        scores = np.stack(known, axis=1)[member] @ mixtures.T
        scores += np.where(mixtures.any(axis=1), how.label_noise, 1) * rng.normal(size=scores.shape)
        values = (scores > np.quantile(scores, 1 - how.prevalence, axis=0)).astype(np.int8)
        graphs.append(graph)
        labels.append(Labels(graph.genes, tuple(kinds), values, _descriptions(kinds, mixtures)))
    finetune = tuple(term for term, kind in kinds.items() if kind == "finetune")
    pretrain = {term: kind for term, kind in kinds.items() if kind != "finetune"}
    return Planted(SourceData(graphs, labels), pretrain, finetune)


def build_planted(
    folder: Path | str,
    settings: PlantedSettings | None = None,
    seed: int = 0,
    *,
    fanout: int = FANOUT,
    processes: int | None = None,
    report: Report | None = None,
) -> EgoStore:
    """The problem as a store; ``store.info["notes"]["kinds"]`` is its truth, term by term.

    Raises:
        InputError: something stands at `folder`, or it cannot be written.
    """
    how = settings or PlantedSettings()
    problem = planted(how, seed)
    wanted = BuildSettings(
        fanout=fanout,
        seed=seed,
        pretrain_terms=problem.pretrain_terms,
        finetune_terms=problem.finetune_terms,
    )
    notes = {"planted": asdict(how), "kinds": problem.kinds}
    return build(problem.data, folder, wanted, notes=notes, processes=processes, report=report)


def _mixtures(how: PlantedSettings, kinds: Sequence[str], rng: np.random.Generator) -> Floats:
    """(tasks, pairs + 1) weights of each task on the products and, last, on density; length 1, or 0 for noise."""
    out = np.zeros((len(kinds), len(PAIRS) + 1))
    shared = [PAIRS.index(pair) for pair in SHARED[: how.factors]]
    others = np.setdiff1d(np.arange(len(PAIRS)), [PAIRS.index(pair) for pair in SHARED])
    for row, kind in zip(out, kinds, strict=True):
        if kind in ("finetune", "useful"):
            row[shared] = rng.normal(size=how.factors)
        elif kind == "other":
            row[rng.choice(others, how.factors, replace=False)] = rng.normal(size=how.factors)
        elif kind == "density":
            row[-1] = 1
    length = np.linalg.norm(out, axis=1, keepdims=True)
    return out / np.where(length > 0, length, 1)


def _communities(how: PlantedSettings, rng: np.random.Generator) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """(k, 7) positions and (k,) densities of the communities, and (n,) each gene's community, ascending."""
    count = how.genes // how.community
    position = rng.uniform(-1, 1, (count, len(CHANNELS)))
    density = rng.uniform(0.5, 1.5, count)
    member = np.concatenate([np.repeat(np.arange(count), 2), rng.integers(0, count, how.genes - 2 * count)])
    return position, density, np.sort(member)


def _graph(
    how: PlantedSettings,
    name: str,
    species: int,
    position: Floats,
    density: Floats,
    member: NDArray[np.int64],
    rng: np.random.Generator,
) -> SpeciesGraph:
    sizes = np.bincount(member)
    first = np.cumsum(sizes) - sizes
    chance = how.partners * density / (sizes - 1)
    inside = np.concatenate(
        [start + _linked(size, p, rng) for start, size, p in zip(first, sizes, chance, strict=True)]
    )
    between = rng.integers(0, how.genes, (round(how.outside * len(inside)), 2))
    pairs = np.concatenate([inside, between])
    place = position[member[pairs]].mean(axis=1)
    evidence = rng.random(place.shape) < (1 + how.contrast * place) / 2
    genes = [f"{name}.{i:04d}" for i in range(how.genes)]
    return SpeciesGraph.from_edges(name, species, genes, pairs, evidence, CHANNELS)


def _linked(size: int, chance: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """(E, 2) of the pairs below `size`, each with that chance."""
    pairs = np.stack(np.triu_indices(size, 1), axis=1)
    return pairs[rng.random(len(pairs)) < chance]


def _standard(values: Floats) -> Floats:
    """Mean 0 and standard deviation 1."""
    return (values - values.mean()) / values.std()


def _descriptions(kinds: dict[str, str], mixtures: Floats) -> dict[str, str]:
    """What each task asks for."""
    names = [f"{CHANNELS[a]} × {CHANNELS[b]}" for a, b in PAIRS] + ["density"]
    return {
        term: " ".join(f"{row[i]:+.2f} {names[i]}" for i in np.flatnonzero(row)) or "nothing"
        for term, row in zip(kinds, mixtures, strict=True)
    }
