"""A small world of proteins, written in the formats of STRING, GAF, ogbn-proteins, OhmNet and Hu et al."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = (266, 1, 777, 652, 300, 900, 670)
LINKS_HEADER = "protein1 protein2 neighborhood fusion cooccurence coexpression experimental database textmining combined_score"
LINKS, TERMS, ALIASES, INFO = "links.detailed", "enrichment.terms", "aliases", "info"
PARENTS: dict[str, tuple[str, ...]] = {
    "GO:0000010": (),
    "GO:0000011": ("GO:0000010",),
    "GO:0000012": ("GO:0000010",),
    "GO:0000013": ("GO:0000011", "GO:0000012"),
    "GO:0000014": ("GO:0000012", "GO:0000020"),
    "GO:0000020": (),
}
LEAVES = ("GO:0000011", "GO:0000013", "GO:0000014", "GO:0000020")
NAMES = {term: f'the "{term[-2:]}" function' for term in PARENTS}
CATEGORY = dict.fromkeys(PARENTS, "Biological Process (Gene Ontology)") | {
    "GO:0000020": "Cellular Component (Gene Ontology)"
}
ALTERNATIVE, OBSOLETE = "GO:0900013", "GO:0000099"


@dataclass(frozen=True)
class World:
    """Two species.

    Attributes:
        proteins: taxon -> identifiers.
        scores: (a, b) of one species, each pair once -> a score a channel.
        direct: protein -> the terms it is annotated with; some have none.
    """

    proteins: Mapping[int, list[str]]
    scores: Mapping[tuple[str, str], tuple[int, ...]]
    direct: Mapping[str, set[str]]

    def edges(self, taxon: int) -> dict[tuple[str, str], tuple[int, ...]]:
        """(a, b) with a < b -> channels on, of the links that reach a threshold: by a plain loop."""
        out = {}
        for (a, b), scores in self.scores.items():
            on = tuple(int(score >= least) for score, least in zip(scores, THRESHOLDS, strict=True))
            if a.startswith(f"{taxon}.") and any(on):
                out[(min(a, b), max(a, b))] = on
        return out

    def has(self, protein: str) -> set[str]:
        """Everything it is annotated with, and what that implies."""
        found = set(self.direct.get(protein, ()))
        while more := {up for term in found for up in PARENTS[term]} - found:
            found |= more
        return found


def world(size: int = 14) -> World:
    rng = np.random.default_rng(7)
    proteins = {taxon: [f"{taxon}.P{k:03d}" for k in rng.permutation(size)] for taxon in (9606, 4932)}
    scores, direct = {}, {}
    for names in proteins.values():
        for i, a in enumerate(names):
            if rng.random() < 0.8:
                direct[a] = set(rng.choice(LEAVES, rng.integers(1, 3), replace=False).tolist())
            for b in names[:i]:
                if rng.random() < 0.6:
                    given = rng.integers(0, 1000, 7) * (rng.random(7) < 0.3)
                    scores[(a, b)] = tuple(given.tolist())
        scores[(names[1], names[0])] = (266, 0, 0, 0, 0, 0, 0)  # just reaches one
        scores[(names[2], names[0])] = (265, 0, 776, 651, 299, 899, 669)  # just misses all
    return World(proteins, scores, direct)


def write_text(path: Path, lines: Iterable[str]) -> Path:
    """Gzipped where the name says so."""
    data = "".join(f"{line}\n" for line in lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read_text(path: Path) -> list[str]:
    data = path.read_bytes()
    return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode().splitlines()


def string_name(taxon: int, kind: str, packed: bool = True) -> str:
    return f"{taxon}.protein.{kind}.v12.0.txt{'.gz' if packed else ''}"


def write_links(folder: Path, given: World, packed: bool = True) -> Path:
    for taxon in given.proteins:
        rows = [(a, b, s) for (a, b), s in given.scores.items() if a.startswith(f"{taxon}.")]
        rows += [(b, a, s) for a, b, s in rows]
        lines = [f"{a} {b} {' '.join(map(str, s))} {max(s)}" for a, b, s in sorted(rows)]
        write_text(folder / string_name(taxon, LINKS, packed), [LINKS_HEADER, *lines])
    return folder


def write_obo(folder: Path, name: str = "go-basic.obo") -> Path:
    lines = ["format-version: 1.2", "ontology: go"]
    for term, parents in PARENTS.items():
        lines += ["", "[Term]", f"id: {term}", f"name: {NAMES[term]}", "namespace: biological_process"]
        lines += [f"alt_id: {ALTERNATIVE}"] if term == "GO:0000013" else []
        lines += [f"is_a: {up} ! above" for up in parents if up != "GO:0000020"]
        lines += [f"relationship: part_of {up} ! around" for up in parents if up == "GO:0000020"]
    lines += ["", "[Term]", f"id: {OBSOLETE}", "name: gone", "is_obsolete: true"]
    return write_text(folder / name, lines)


def write_string(folder: Path, given: World, packed: bool = True) -> Path:
    write_links(folder, given, packed)
    write_obo(folder)
    for taxon, proteins in given.proteins.items():
        lines = ["#string_protein_id\tcategory\tterm\tdescription"]
        for protein in proteins:
            lines += [
                f"{protein}\t{CATEGORY[term]}\t{term}\t{NAMES[term]}" for term in sorted(given.has(protein))
            ]
            lines.append(f"{protein}\tKEGG (Kyoto Encyclopedia of Genes and Genomes)\tmap00010\tGlycolysis")
        write_text(folder / string_name(taxon, TERMS, packed), lines)
    return folder


def gaf_row(
    identifier: str, symbol: str, term: str, taxon: str, qualifier: str = "", evidence: str = "IDA"
) -> str:
    cells = ["UniProtKB", identifier, symbol, qualifier, term, "PMID:1", evidence, "", "P", "a name", "S1|S2"]
    return "\t".join([*cells, "protein", taxon, "20200101", "GOC", "", ""])


def write_gaf(folder: Path, given: World) -> Path:
    """Humans joined by identifier; yeast, under its strain's taxon, by symbol."""
    write_links(folder, given)
    write_obo(folder, "go-basic.obo.gz")
    for taxon, proteins in given.proteins.items():
        rows, aliases, info = [], ["#string_protein_id\talias\tsource"], []
        info.append("#string_protein_id\tpreferred_name\tprotein_size\tannotation")
        here = "taxon:9606" if taxon == 9606 else "taxon:559292|taxon:9606"
        for protein in proteins:
            number = protein[-3:]
            identifier, symbol = f"Q{taxon}{number}", f"SYM{number}"
            aliases.append(f"{protein}\t{symbol if taxon == 4932 else identifier}\tUniProt")
            aliases.append(f"{protein}\tambiguous\tUniProt")
            info.append(f"{protein}\t{symbol}\t100\tsays nothing")
            for term in sorted(given.direct.get(protein, ())):
                said = ALTERNATIVE if term == "GO:0000013" else term
                rows += [gaf_row(identifier, symbol, said, here)] * 2
            rows.append(gaf_row(identifier, symbol, "GO:0000020", here, "NOT|part_of"))
            rows.append(gaf_row(identifier, symbol, "GO:0000020", here, evidence="IEA"))
            rows.append(gaf_row(identifier, symbol, OBSOLETE, here))
            rows.append(gaf_row(identifier, symbol, "GO:0000020", "taxon:10090"))
        rows.append(gaf_row("ambiguous", "ambiguous", "GO:0000020", here))
        write_text(folder / f"{taxon}.gaf.gz", ["!gaf-version: 2.2", "!a comment", *rows])
        write_text(folder / string_name(taxon, ALIASES), aliases)
        if taxon == 9606:
            write_text(folder / string_name(taxon, INFO), info)
    return folder


def write_ogb(folder: Path, given: World) -> Path:
    names = [protein for proteins in given.proteins.values() for protein in proteins]
    place = {protein: number for number, protein in enumerate(names)}
    terms = sorted(PARENTS)
    raw, mapping = folder / "raw", folder / "mapping"
    write_text(raw / "edge.csv.gz", [f"{place[a]},{place[b]}" for a, b in given.scores])
    scores = [",".join(f"{s / 1000:g}" for s in (999, *scores)) for scores in given.scores.values()]
    write_text(raw / "edge-feat.csv.gz", scores)
    write_text(raw / "node_species.csv.gz", [name.split(".")[0] for name in names])
    values = [",".join(str(int(term in given.has(name))) for term in terms) for name in names]
    write_text(raw / "node-label.csv.gz", values)
    write_text(raw / "num-node-list.csv.gz", [str(len(names))])
    write_text(raw / "num-edge-list.csv.gz", [str(len(given.scores))])
    lines = ["node idx,protein id", *(f"{number},{name}" for number, name in enumerate(names))]
    write_text(mapping / "nodeidx2proteinid.csv.gz", lines)
    lines = ["label idx,GO", *(f"{number},{term}" for number, term in enumerate(terms))]
    write_text(mapping / "labelidx2GO.csv.gz", lines)
    return folder


def write_ohmnet(folder: Path, packed: bool = False) -> Path:
    """Two tissues, one with labels of its own, and labels of a third without a network."""
    files = {
        "bio-tissue-networks/heart.edgelist": "11\t12\n12\t13\n13\t11\n12\t12\n14\t11\n",
        "bio-tissue-networks/blood_plasma.edgelist": "11 12\n12 11\n",
        "bio-tissue-labels/heart_GO:0000011.lab": "# 0 - not, 1 - has\n11\t1\n12\t0\n99\t1\n",
        "bio-tissue-labels/lens_GO:0000011.lab": "# 0 - not, 1 - has\n12\t1\n13\t0\n",
        "bio-tissue-labels/lens_GO:0000012.lab": "# 0 - not, 1 - has\n11\t0\n13\t1\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    if not packed:
        for name, text in files.items():
            write_text(folder / name, text.splitlines())
        return folder
    for part in ("bio-tissue-networks", "bio-tissue-labels"):
        with tarfile.open(folder / f"{part}.tar.gz", "w:gz") as archive:
            for name, text in files.items():
                if name.startswith(part):
                    member = tarfile.TarInfo(name)
                    member.size = len(text.encode())
                    archive.addfile(member, io.BytesIO(text.encode()))
    return folder


def hu_arrays(graphs: int = 9, pretrain: int = 5, finetune: int = 3) -> dict[str, list[NDArray[Any]]]:
    """name -> one array a graph, in Hu et al.'s layout."""
    rng = np.random.default_rng(3)
    out: dict[str, list[NDArray[Any]]] = {}
    for number in range(graphs):
        n = int(rng.integers(2, 9))
        ends, attributes = [], []
        for a in range(n):
            for b in range(a):
                if rng.random() < 0.6:
                    evidence = [*(rng.random(7) < 0.4).astype(float), 0.0, 0.0]
                    pair = (a, b) if rng.random() < 0.5 else (b, a)
                    ends += [pair, pair[::-1]]
                    attributes += [evidence, evidence]
        values: dict[str, NDArray[Any]] = {
            "x": np.ones((n, 1), np.float32),
            "edge_index": np.array(ends, np.int64).reshape(-1, 2).T,
            "edge_attr": np.array(attributes, np.float32).reshape(-1, 9),
            "center_node_idx": np.array([rng.integers(n)]),
            "species_id": np.array([3702 if number < 4 else 9606]),
            "go_target_pretrain": rng.integers(0, 2, pretrain),
            "go_target_downstream": rng.integers(0, 2, finetune),
        }
        for name, value in values.items():
            out.setdefault(name, []).append(value)
    return out


def write_hu(
    path: Path,
    arrays: Mapping[str, list[NDArray[Any]]],
    zipped: bool = False,
    change: Callable[[Any, dict[str, Any]], None] | None = None,
) -> Path:
    """(data, slices) as an early PyG pickled them: a Data whose state is its attributes; ``change`` breaks them."""
    import torch
    from torch_geometric.data import data as module

    class Data:
        pass

    Data.__module__, Data.__qualname__ = module.__name__, "Data"
    data, slices = Data(), {}
    for name, parts in arrays.items():
        axis = 1 if name == "edge_index" else 0
        setattr(data, name, torch.from_numpy(np.concatenate(parts, axis=axis)))
        slices[name] = torch.tensor(np.cumsum([0, *(part.shape[axis] for part in parts)]))
    data.__dict__ |= {"y": None, "pos": None}
    if change is not None:
        change(data, slices)
    path.parent.mkdir(parents=True, exist_ok=True)
    with patch.object(
        module, "Data", Data
    ):  # pickle writes a class by its name, and looks whether it is that
        torch.save((data, slices), path, _use_new_zipfile_serialization=zipped)
    return path
