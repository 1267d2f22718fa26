"""From prepared faces and a protocol to the rows that train, choose and test."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from models import ATTACK, BONA_FIDE
from train.attacks.pairs import SyntheticPairs
from train.data.datasets._registry import dataset_names, load_dataset
from train.data.datasets._sample import LEVELS, Level, ListedVideo
from train.data.loaders import Group, open_loader
from train.data.overlap import Identity, Overlap, find_shared, told
from train.data.prepare import read_problems
from train.data.protocols import (
    DevEer,
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
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from models import FaceBatch, InputSpec
    from train.config import DataConfig, Recipe
    from train.data.protocols import Protocol, Resolved
    from train.data.shards import FaceRecord, Shards
    from train.fit.ranks import Ranks


log = logging.getLogger(__name__)


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
    identities: dict[str, list[Identity]]  # of `train`, `dev` and each test set: its videos
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
        pairs = SyntheticPairs(recipe.data.synthetic) if recipe.data.synthetic else None
        if pairs is not None:
            pairs.check(self.shards.prepared)
        loaded = open_loader(
            self.shards,
            groups(self.shards.records, self.train, recipe.data),
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
        wanted = load_protocol(protocol)
        chosen = resolve(wanted, opened.listings(), allow_overlap=True)  # told below, with files
        data = _by_protocol(opened, wanted, chosen)
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
        wanted = load_protocol(protocol)
        data = _by_protocol(opened, wanted, resolve_tests(wanted, opened.listings()))
        return _checked(data, allow_overlap)
    splits = {video.split for video in opened.videos.values()}
    everything = every_split or splits == {None}
    test = opened.part(None if everything else "test")
    dev = Part([], []) if everything else opened.part("dev")
    if not test.rows:
        raise TrainError(
            f"{', '.join(map(str, prepared))}: no face is of split test; test on every face with"
            " --every-split, or choose a protocol"
        )
    return _checked(opened.data([], dev, {"test": test}), allow_overlap)


@dataclass(frozen=True, slots=True)
class _Opened:
    """Prepared folders, with their rows by video."""

    shards: Shards
    rows: dict[str, list[int]]  # by video, in order of track and frame
    videos: dict[str, ListedVideo]
    faceless: dict[str, ListedVideo]

    def listings(self) -> dict[str, list[ListedVideo]]:
        """Return all videos, by data set."""
        listings: defaultdict[str, list[ListedVideo]] = defaultdict(list)
        for video in (*self.videos.values(), *self.faceless.values()):
            listings[video.dataset].append(video)
        return listings

    def part(self, split: str | None) -> Part:
        """Return the faces of a split; None: all faces."""
        return Part(
            [
                row
                for name, video in self.videos.items()
                if split in (None, video.split)
                for row in self.rows[name]
            ],
            [video for video in self.faceless.values() if split in (None, video.split)],
        )

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
            disjoint=_level({video.dataset for video in self.videos.values()}),
            identities=_identities(self.shards, parts),
            shared={},
        )


def _opened(prepared: Sequence[Path]) -> _Opened:
    shards = open_shards(*prepared)
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for row, record in enumerate(shards.records):
        rows[record.video_id].append(row)
    for of_video in rows.values():
        of_video.sort(key=lambda row: (shards.records[row].track, shards.records[row].frame))
    videos = {name: _listed(shards.records[of_video[0]]) for name, of_video in rows.items()}
    faceless = {video.video_id: video for folder in prepared for video in read_problems(folder)}
    return _Opened(shards, rows, videos, faceless)


def _by_protocol(opened: _Opened, wanted: Protocol, chosen: Resolved) -> Data:
    def part(which: VideoSet, listed: Sequence[ListedVideo]) -> Part:
        return Part(
            [row for video in listed for row in _frames(which, video, opened.rows[video.video_id])],
            [video for video in listed if video.video_id in opened.faceless],
            distorted=isinstance(which, TestSet) and which.distortion is not None,
        )

    train, dev = part(wanted.train, chosen.train), part(wanted.dev, chosen.dev)
    tests = {name: part(wanted.test[name], listed) for name, listed in chosen.test.items()}
    return Data(
        opened.shards,
        train.rows,
        dev,
        tests,
        wanted.threshold,
        wanted.name,
        disjoint=wanted.level,
        identities=_identities(opened.shards, {"train": train, "dev": dev, **tests}),
        shared={},
    )


def _identities(shards: Shards, parts: dict[str, Part]) -> dict[str, list[Identity]]:
    """Return the videos of each part that gave faces."""
    identities = {}
    for name, part in parts.items():
        records = (shards.records[row] for row in part.rows)
        by_video = {
            record.video_id: Identity(
                record.video_id, record.source_sha256, record.source_id, record.subject
            )
            for record in records
        }
        identities[name] = list(by_video.values())
    return identities


def _level(datasets: set[str]) -> Level:
    """Return what the splits of these data sets do not share."""
    named = (name.removeprefix("synthetic/") for name in datasets)
    known = [load_dataset(name).disjoint for name in named if name in dataset_names()]
    return min([*known, "subject"], key=LEVELS.index)


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


def groups(records: Sequence[FaceRecord], rows: Sequence[int], config: DataConfig) -> list[Group]:
    """Return what each part of a batch is drawn from.

    Args:
        records: of the opened shards.
        rows: that train.
        config: how to group them.

    Raises:
        TrainError: a class that the batches need has no face, or a quota names no group.
    """
    found: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    for row in rows:
        record = records[row]
        if config.synthetic and record.label == ATTACK:
            continue
        found[record.label, _group_of(record, config.group_by)].append(row)
    names = {name for _, name in found}
    unknown = sorted(config.quotas.keys() - names)
    if unknown:
        raise TrainError(f"data.quotas: no face of {', '.join(unknown)}; found {sorted(names)}")
    needed = {BONA_FIDE} if config.synthetic else {BONA_FIDE, ATTACK}
    missing = needed - {label for label, _ in found}
    if missing:
        what = (
            "attacks: set data.synthetic, or add" if ATTACK in missing else "bona fide faces: add"
        )
        raise TrainError(f"train holds no {what} a data set")
    return [
        Group(
            name=f"{'attack' if label == ATTACK else 'bona fide'} {name}".strip(),
            rows=members,
            quota=(
                config.attacks_per_step
                if label == ATTACK
                else config.quotas.get(name, config.bona_fide_per_step)
            ),
        )
        for (label, name), members in sorted(found.items())
    ]


def _group_of(record: FaceRecord, by: str | None) -> str:
    if by is None:
        return ""
    value = record.attributes.get(by, getattr(record, by, None))
    if not isinstance(value, str):
        raise TrainError(
            f"data.group_by: {by!r} is no field or attribute of {record.sample_id}; it has "
            f"dataset, subject, compression, {', '.join(sorted(record.attributes))}"
        )
    return value


def _by_split(opened: _Opened, *, synthetic: bool) -> Data:
    train, dev, test = (opened.part(split) for split in ("train", "dev", "test"))
    if not train.rows:
        raise TrainError("no prepared face is of split train; choose a protocol")
    labels = {opened.shards.records[row].label for row in dev.rows}
    if dev.rows and len(labels) < 2 and not synthetic:
        raise TrainError("the dev faces are of one class only; choosing needs both")
    return opened.data(train.rows, dev, {"test": test} if test.rows else {})


def _frames(which: VideoSet, video: ListedVideo, rows: list[int]) -> list[int]:
    """Return the rows of a video that a set uses.

    Its frames are chosen among the prepared ones, which `prepare` spread evenly over the video:
    `first_n` means the first prepared ones.
    """
    return [rows[i] for i in which.frame_indices(replace(video, frames=None), len(rows))]


def _listed(record: FaceRecord) -> ListedVideo:
    return ListedVideo(
        dataset=record.dataset,
        path=record.video_id.removeprefix(f"{record.dataset}:"),
        kind="video",
        attack_type=record.attack_type,
        split=record.split,
        source_id=record.source_id,
        subject=record.subject,
        compression=record.compression,
        attributes=record.attributes,
    )
