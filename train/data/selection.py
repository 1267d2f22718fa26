"""From prepared faces and a protocol to the rows that train, choose and test."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models import ATTACK, BONA_FIDE
from train.attacks.pairs import training_pairs
from train.data.datasets._registry import disjoint_level
from train.data.datasets._sample import Level, ListedVideo
from train.data.loaders import Group, open_loader
from train.data.manifest import OF_A_VIDEO
from train.data.overlap import Identity, Overlap, find_shared, told
from train.data.prepare import read_problems
from train.data.protocols import (
    DevEer,
    Protocol,
    TestSet,
    Threshold,
    VideoSet,
    load_protocol,
    resolve,
    resolve_tests,
)
from train.data.shards import open_shards
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from models import FaceBatch, InputSpec
    from train.config import DataConfig, Recipe
    from train.data.protocols import Resolved
    from train.data.shards import Shards
    from train.fit.ranks import Ranks


log = logging.getLogger(__name__)

_GROUPED: Final = ("dataset", "subject", "compression", "split", "attack_type", "source_id")


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The faces of one role."""

    rows: list[int]  # of the opened shards
    faceless: list[ListedVideo]  # that belong to it, but gave no face
    distorted: bool = (
        False  # each picture is damaged before it is scored (train.evaluation.distortion)
    )
    synthetic: bool = False  # its attacks are made from its bona fide faces, and it has no others


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """What a run learns from, chooses by and reports on."""

    shards: Shards
    train: list[int]  # rows
    dev: Part
    test: dict[str, Part]
    threshold: Threshold
    protocol: str | None
    disjoint: Level  # what train, dev and test must not share
    identities: dict[str, pa.Table]  # of `train`, `dev` and each test set: its videos
    shared: dict[tuple[str, str], list[Overlap]]  # by two of these names; empty unless allowed

    def training_batches(
        self, recipe: Recipe, ranks: Ranks, spec: InputSpec, *, first_step: int
    ) -> Generator[FaceBatch]:
        """Return this rank's endless batches, beginning with those of a step.

        Args:
            recipe: what to draw, and how to augment it.
            ranks: this process among those of the run.
            spec: of the network.
            first_step: finished optimiser steps; each takes `recipe.accumulate` batches.
        """
        pairs = (
            training_pairs(recipe.data.synthetic, recipe.data.autoencoders)
            if recipe.data.synthetic
            else None
        )
        if pairs is not None:
            pairs.check(self.shards.prepared)
        loaded = open_loader(
            self.shards,
            groups(self.shards, self.train, recipe.data),
            spec,
            recipe.loader,
            seed=recipe.seed,
            first_step=first_step * recipe.accumulate,
            augment=recipe.augment,
            transform=pairs,
            rank=ranks.rank,
            world=ranks.world,
        )
        return (step.batch for step in loaded)


def open_data(
    prepared: Sequence[Path],
    protocol: str | None,
    *,
    synthetic: bool = False,
    allow_overlap: bool = False,
) -> Data:
    """Open prepared folders and choose their rows by a protocol.

    No file, source or subject may be on two sides, unless the protocol claims less.

    Args:
        prepared: folders.
        protocol: name in configs/protocols; None: the splits of the data sets, thresholds at dev's
            EER.
        synthetic: attacks are made from the bona fide faces, so that dev may hold no others.
        allow_overlap: log what two sides share, and keep it in `Data.shared`, but go on.

    Raises:
        TrainError: as `open_shards` and `resolve` do; train or dev lacks a class; or two sides
            share what they must not.
    """
    opened = _opened(prepared)
    if protocol is None:
        data = _by_split(opened, synthetic=synthetic)
    else:
        data = _by_protocol(opened, load_protocol(protocol), _resolved)
    if synthetic:
        data = replace(data, dev=replace(data.dev, synthetic=True))
    return _checked(data, allow_overlap)


def open_tests(
    prepared: Sequence[Path],
    protocol: str | None,
    *,
    every_split: bool = False,
    allow_overlap: bool = False,
) -> Data:
    """Open prepared folders to test on: `train` stays empty, and `dev` where they have none.

    Args:
        prepared: folders.
        protocol: name in configs/protocols, of which the test sets and, if any of its videos is
            there, dev are taken; None: split test and split dev.
        every_split: without a protocol: test on all faces, whatever their split. Faces that have
            none are tested in any case, if no other face has one.
        allow_overlap: as of `open_data`.

    Raises:
        TrainError: as `open_shards` and `resolve_tests` do; no face is of split test; or dev and
            test share what they must not.
    """
    opened = _opened(prepared)
    if protocol is not None:
        data = _by_protocol(opened, load_protocol(protocol), resolve_tests)
        return _checked(data, allow_overlap)
    splits = set(opened.shards.videos["split"].unique().to_pylist())
    everything = every_split or splits == {None}
    test = opened.part(None if everything else "test")
    dev = Part([], []) if everything else opened.part("dev")
    if not test.rows:
        raise TrainError(
            f"{', '.join(map(str, prepared))}: no face is of split test; test on every face with"
            " --every-split, or choose a protocol"
        )
    return _checked(opened.data([], dev, {"test": test}), allow_overlap)


def open_dev(prepared: Sequence[Path]) -> Data:
    """Open prepared folders for a network that was trained elsewhere: `dev`, and nothing else.

    Faces of split dev; where no face has a split, all of them.

    Raises:
        TrainError: as `open_shards` does; or no face is of split dev.
    """
    opened = _opened(prepared)
    splits = set(opened.shards.videos["split"].unique().to_pylist())
    dev = opened.part(None if splits == {None} else "dev")
    if not dev.rows:
        raise TrainError(
            f"{', '.join(map(str, prepared))}: no face is of split dev; calibration and thresholds "
            "are chosen on bona fide faces that no training saw"
        )
    return opened.data([], dev, {})


@dataclass(frozen=True, slots=True)
class _Opened:
    """Prepared folders."""

    shards: Shards
    faceless: list[ListedVideo]

    def part(self, split: str | None) -> Part:
        """Return the faces of a split; None: all faces."""
        rows = self.shards.rows() if split is None else self.shards.rows(split=split)
        faceless = [video for video in self.faceless if split in (None, video.split)]
        return Part(rows.tolist(), faceless)

    def data(self, train: list[int], dev: Part, tests: dict[str, Part]) -> Data:
        """Return parts by split as the data of a run."""
        parts = {"train": Part(train, []), "dev": dev, **tests}
        return Data(
            self.shards,
            train,
            dev,
            tests,
            DevEer(kind="dev_eer"),
            None,
            disjoint=disjoint_level(self.shards.videos["dataset"].unique().to_pylist()),
            identities=_identities(self.shards, parts),
            shared={},
        )


def _opened(prepared: Sequence[Path]) -> _Opened:
    faceless = [video for folder in prepared for video in read_problems(folder)]
    return _Opened(open_shards(*prepared), faceless)


def _by_split(opened: _Opened, *, synthetic: bool) -> Data:
    train, dev, test = (opened.part(split) for split in ("train", "dev", "test"))
    if not train.rows:
        raise TrainError("no prepared face is of split train; choose a protocol")
    if dev.rows and len(np.unique(opened.shards.label[dev.rows])) < 2 and not synthetic:
        raise TrainError("the dev faces are of one class only; choosing needs both")
    return opened.data(train.rows, dev, {"test": test} if test.rows else {})


def _resolved(protocol: Protocol, listings: Mapping[str, Sequence[ListedVideo]]) -> Resolved:
    return resolve(protocol, listings, allow_overlap=True)  # `_checked` compares, files too


def _by_protocol(
    opened: _Opened,
    protocol: Protocol,
    resolver: Callable[[Protocol, Mapping[str, Sequence[ListedVideo]]], Resolved],
) -> Data:
    shards = opened.shards
    listings: defaultdict[str, list[ListedVideo]] = defaultdict(list)
    examples, like = _examples(shards, protocol)
    for video in (*examples, *opened.faceless):
        listings[video.dataset].append(video)
    chosen = resolver(protocol, listings)
    number_of = {id(video): number for number, video in enumerate(examples)}

    def part(which: VideoSet, listed: Sequence[ListedVideo]) -> Part:
        wanted = np.zeros(len(examples), bool)
        without = []
        for video in listed:
            if (number := number_of.get(id(video))) is None:
                without.append(video)
            else:
                wanted[number] = True
        videos = np.flatnonzero(wanted[like])
        distorted = isinstance(which, TestSet) and which.distortion is not None
        return Part(_frames(which, shards, videos), without, distorted=distorted)

    train, dev = part(protocol.train, chosen.train), part(protocol.dev, chosen.dev)
    tests = {name: part(protocol.test[name], listed) for name, listed in chosen.test.items()}
    return Data(
        shards,
        train.rows,
        dev,
        tests,
        protocol.threshold,
        protocol.name,
        disjoint=protocol.level,
        identities=_identities(shards, {"train": train, "dev": dev, **tests}),
        shared={},
    )


def _examples(shards: Shards, protocol: Protocol) -> tuple[list[ListedVideo], NDArray[np.int64]]:
    """Return one video of each kind that the protocol tells apart, and the kind of every video.

    Millions of videos are of a few kinds: asking once for each is what makes it quick.

    Returns:
        The examples; and (V,) the number of each video's example.
    """
    videos = shards.videos
    columns = [videos[name] for name in ("dataset", "split", "attack_type", "compression")]
    columns += [pc.map_lookup(videos["attributes"], key, "first") for key in protocol.attributes()]
    columns.append(videos["subject"] if protocol.names_subjects() else videos["subject"].is_null())
    kind = np.zeros(len(videos), np.int64)
    for column in columns:
        codes = column.combine_chunks().dictionary_encode(null_encoding="encode")
        mixed = kind * max(len(codes.dictionary), 1) + codes.indices.to_numpy()
        kind = pa.array(mixed).dictionary_encode().indices.to_numpy().astype(np.int64)
    first = np.zeros(kind.max(initial=-1) + 1, np.int64)
    first[kind[::-1]] = np.arange(len(kind))[::-1]
    return [_listed(video) for video in videos.take(pa.array(first)).to_pylist()], kind


def _frames(which: VideoSet, shards: Shards, videos: NDArray[np.int64]) -> list[int]:
    """Return the rows of these videos that a set uses, chosen among the prepared frames."""
    starts, counts = shards.first[videos], np.diff(shards.first)[videos]
    labels = shards.label[np.minimum(starts, len(shards.label) - 1)]
    limits = which.frames_per_video
    limit_of = {BONA_FIDE: limits.bona_fide, ATTACK: limits.attack}
    rows = []
    for label, limit in limit_of.items():
        of_label = labels == label
        whole = of_label if limit is None else of_label & (counts <= limit)
        rows.append(_ranges(starts[whole], counts[whole]))
        for video in videos[of_label & ~whole]:
            name = shards.videos["video_id"][int(video)].as_py()
            first = int(shards.first[video])
            frames = which.frames_of(name, label, int(shards.first[video + 1]) - first)
            rows.append(first + np.asarray(frames, np.int64))
    together: list[int] = np.sort(np.concatenate(rows)).tolist()
    return together


def _ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers start, ..., start + count - 1 of every pair, one after the other."""
    before = np.cumsum(counts) - counts
    return np.asarray(np.arange(counts.sum()) + np.repeat(starts - before, counts), np.int64)


def _identities(shards: Shards, parts: dict[str, Part]) -> dict[str, pa.Table]:
    """Return the videos of each part that gave faces."""
    columns = shards.videos.select(Identity._fields)
    chosen = {}
    for name, part in parts.items():
        mask = np.zeros(len(columns), bool)
        mask[shards.video[np.asarray(part.rows, np.int64)]] = True
        chosen[name] = columns.filter(pa.array(mask))
    return chosen


def _checked(data: Data, allow_overlap: bool) -> Data:
    """Refuse, or log and keep, what two sides share."""
    shared = find_shared(data.identities, data.disjoint)
    messages = [told(overlaps, *names) for names, overlaps in shared.items()]
    if messages and not allow_overlap:
        raise TrainError(
            f"{data.protocol or 'splits'}: {'; '.join(messages)}. A score on what was learned from "
            "says nothing: move them to one side, or go on all the same with --allow-overlap"
        )
    for message in messages:
        log.warning("overlap allowed: %s", message)
    return replace(data, shared=shared)


def groups(shards: Shards, rows: Sequence[int], config: DataConfig) -> list[Group]:
    """Return what each part of a batch is drawn from.

    Args:
        shards: opened.
        rows: that train.
        config: how to group them.

    Raises:
        TrainError: a class that the batches need has no face, or a quota names no group.
    """
    drawn = np.asarray(rows, np.int64)
    if config.synthetic:
        drawn = drawn[shards.label[drawn] != ATTACK]
    names, name_of = _group_names(shards, drawn, config.group_by)
    unknown = sorted(config.quotas.keys() - set(names))
    if unknown:
        raise TrainError(f"data.quotas: no face of {', '.join(unknown)}; found {names}")
    needed = {BONA_FIDE} if config.synthetic else {BONA_FIDE, ATTACK}
    labels = shards.label[drawn]
    missing = needed - set(np.unique(labels).tolist())
    if missing:
        what = (
            "attacks: set data.synthetic, or add" if ATTACK in missing else "bona fide faces: add"
        )
        raise TrainError(f"train holds no {what} a data set")
    every = [
        Group(
            name=f"{'attack' if label == ATTACK else 'bona fide'} {name}".strip(),
            rows=drawn[(labels == label) & (name_of == number)].tolist(),
            quota=(
                config.attacks_per_step
                if label == ATTACK
                else config.quotas.get(name, config.bona_fide_per_step)
            ),
        )
        for label in sorted(needed)
        for number, name in enumerate(names)
    ]
    return [group for group in every if group.rows]


def _group_names(
    shards: Shards, rows: NDArray[np.int64], by: str | None
) -> tuple[list[str], NDArray[np.int64]]:
    """Return the names of the groups, sorted, and the number of each row's group."""
    if by is None:
        return [""], np.zeros(len(rows), np.int64)
    numbers, place = np.unique(shards.video[rows], return_inverse=True)
    values: list[str] = []
    for video in shards.videos.take(pa.array(numbers)).to_pylist():
        attributes = dict(video["attributes"])
        value = attributes.get(by, video[by] if by in _GROUPED else None)
        if not isinstance(value, str):
            raise TrainError(
                f"data.group_by: {by!r} is no field or attribute of {video['video_id']}; it has "
                f"{', '.join((*_GROUPED, *sorted(attributes)))}"
            )
        values.append(value)
    names, number = np.unique(np.array(values, dtype=object), return_inverse=True)
    return [str(name) for name in names], number[place]


def _listed(video: dict[str, Any]) -> ListedVideo:
    """Return a row of the manifest as its data set listed it, as far as it is known."""
    fields = {f.name: video[f.name] for f in dataclass_fields(ListedVideo) if f.name in OF_A_VIDEO}
    path = video["video_id"].removeprefix(f"{video['dataset']}:")
    return ListedVideo(
        **fields | {"attributes": dict(video["attributes"])}, path=path, kind="video"
    )
