"""Protocols: which videos train, choose thresholds and test, said in configs/protocols/*.yaml.

A file is one protocol, named after it, or with `for:` a family: each entry gives a suffix of the
name and the values that replace `$parameter` in the rest of the file.

    for:
      "1": {phone: "1"}
    ...
    exclude: {attributes: {phone: $phone}}

Nothing here can choose on test data: thresholds are of the dev set or fixed, a dev set names its
split and that is never test, and resolving refuses what lies on both sides.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, TypeAlias

import numpy as np
import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from models import ATTACK, BONA_FIDE, one_line
from train.data.datasets._sample import BONA_FIDE_TYPE, Family, Level, ListedVideo, Split
from train.data.datasets._tree import some
from train.data.overlap import Identity, find_shared, identities, told
from train.errors import TrainError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

FOLDER: Final = Path(__file__).resolve().parents[2] / "configs" / "protocols"


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Words: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
Splits: TypeAlias = Annotated[tuple[Split, ...], BeforeValidator(_as_tuple), Field(min_length=1)]


class Query(BaseModel, frozen=True, extra="forbid"):
    """Videos whose fields have one of the values named; a field that is not named may be anything.

    `bona_fide` among the attack types means the videos without one.
    """

    dataset: Words | None = Field(None, description="Names of data sets.")
    split: Splits | None = Field(None, description="The data set's own splits.")
    attack_type: Words | None = Field(
        None, description="Types of attack, as the data set names them, or `bona_fide`."
    )
    family: Family | None = Field(None, description="Kind of attack that types belong to.")
    compression: Words | None = Field(None, description="The data set's names of its compressions.")
    subjects: Words | None = Field(None, description="Ids of people.")
    attributes: dict[str, Words] = Field(
        default_factory=dict, description="Further fields of the data set, with the values allowed."
    )

    def matches(self, video: ListedVideo) -> bool:
        """Say whether the video has all that is asked for."""
        return (
            _allows(self.dataset, video.dataset)
            and _allows(self.split, video.split)
            and _allows(self.attack_type, video.attack_type or BONA_FIDE_TYPE)
            and (self.family is None or self.family == video.family)
            and _allows(self.compression, video.compression)
            and _allows(self.subjects, video.subject)
            and all(_allows(v, video.attributes.get(k)) for k, v in self.attributes.items())
        )


def _allows(values: tuple[str, ...] | None, value: str | None) -> bool:
    return values is None or value in values


class FramesPerVideo(BaseModel, frozen=True, extra="forbid"):
    """How many frames of a video are used; None: all. A picture has one."""

    bona_fide: int | None = Field(ge=1, description="Frames of a bona fide video; null: all.")
    attack: int | None = Field(ge=1, description="Frames of an attack; null: all.")

    @model_validator(mode="before")
    @classmethod
    def _one_for_both(cls, value: object) -> object:
        if value == "all":
            value = None
        return (
            {"bona_fide": value, "attack": value} if value is None or type(value) is int else value
        )


class VideoSet(BaseModel, frozen=True, extra="forbid"):
    """Videos that any of the queries matches, and which of their frames."""

    videos: tuple[Query, ...] = Field(min_length=1, description="Each names its data set.")
    only: Query | None = Field(None, description="Keep only those that match this, too.")
    exclude: Query | None = Field(None, description="Leave out those that match this.")
    frames_per_video: FramesPerVideo = Field(description="A number, `all`, or one for each class.")
    sampling: Literal["linspace", "random", "first_n"] = Field(
        "linspace", description="Which frames: evenly spaced, drawn, or the first ones."
    )
    seed: int | None = Field(None, description="Of `random`, which needs it.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(query.dataset is None for query in self.videos):
            raise ValueError("every query of `videos` must name its `dataset`")
        if (self.sampling == "random") != (self.seed is not None):
            raise ValueError("`seed` belongs to `sampling: random`, which needs it")
        return self

    def frames_of(self, video_id: str, label: int, n_frames: int) -> Sequence[int]:
        """Return which of a video's `n_frames` prepared frames are used, ascending.

        The same video always gives the same frames, whatever else is read.
        """
        wanted = self.frames_per_video
        count = wanted.bona_fide if label == BONA_FIDE else wanted.attack
        if count is None or count >= n_frames:
            return range(n_frames)
        match self.sampling:
            case "first_n":
                return range(count)
            case "linspace":
                chosen = np.linspace(0, n_frames - 1, count).round().astype(int)
            case "random":
                key = hashlib.sha256(f"{self.seed}:{video_id}".encode()).digest()
                rng = np.random.default_rng(int.from_bytes(key[:8], "big"))
                chosen = np.sort(rng.choice(n_frames, count, replace=False))
        return [int(i) for i in chosen]


class TestSet(VideoSet, frozen=True, extra="forbid"):
    """Videos to report on."""

    __test__ = False  # pytest takes the name for a class of tests

    distortion: Literal["uniattack"] | None = Field(
        None,
        description="`uniattack`: each picture gets one of JPEG (quality 50-60), Gaussian blur"
        " (kernel 9-11), Gaussian noise (variance 10-20), contrast and saturation (+-50 %).",
    )


class DevEer(BaseModel, frozen=True, extra="forbid"):
    """Where APCER and BPCER of the dev set are closest."""

    kind: Literal["dev_eer"]


class DevBpcer(BaseModel, frozen=True, extra="forbid"):
    """The lowest threshold at which the dev set's BPCER is no higher than `at`."""

    kind: Literal["dev_bpcer"]
    at: float = Field(gt=0, lt=1, description="Highest BPCER of the dev set, above 0 and below 1.")


class FixedThreshold(BaseModel, frozen=True, extra="forbid"):
    """A number from elsewhere."""

    kind: Literal["fixed"]
    value: float = Field(
        ge=0, le=1, description="Probability of an attack, 0..1, at or above which a face is one."
    )


Threshold: TypeAlias = Annotated[DevEer | DevBpcer | FixedThreshold, Field(discriminator="kind")]


class Protocol(BaseModel, frozen=True, extra="forbid"):
    """Who trains, who chooses, who tests."""

    name: str = Field(description="Of the file, with the suffix of the member of a family.")
    description: str = Field(description="What it measures, and where it comes from.")
    disjoint: Literal["subject", "source", "video", "known"] = Field(
        description="What train, dev and test must not share; `subject` includes `source`, and"
        " `source` includes `video`. `known`: sources, and those subjects that are told."
    )
    train: VideoSet = Field(description="Videos to learn from.")
    dev: VideoSet = Field(description="Videos that choose weights, calibration and threshold.")
    test: dict[str, TestSet] = Field(min_length=1, description="Name of a test set -> its videos.")
    threshold: Threshold = Field(description="Rule of the operating point.")

    @model_validator(mode="after")
    def _sets_have_names_of_their_own(self) -> Self:
        if taken := {"train", "dev"} & self.test.keys():
            raise ValueError(f"a test set can't be named {some(taken)}")
        return self

    @model_validator(mode="after")
    def _dev_is_not_test(self) -> Self:
        only = self.dev.only.split if self.dev.only else None
        for query in self.dev.videos:
            split = only or query.split
            if split is None or "test" in split:
                raise ValueError("dev must name its split, and that can't be test")
        return self

    @property
    def level(self) -> Level:
        """How far train, dev and test are compared."""
        return "subject" if self.disjoint == "known" else self.disjoint

    def datasets(self) -> tuple[str, ...]:
        """Return the names of the data sets that resolving needs, sorted."""
        return tuple(sorted({name for query in self._queries() for name in query.dataset or ()}))

    def attributes(self) -> tuple[str, ...]:
        """Return the names of the attributes that a query asks for, sorted."""
        return tuple(sorted({name for query in self._queries() for name in query.attributes}))

    def names_subjects(self) -> bool:
        """Return whether a query asks for people by name."""
        return any(query.subjects is not None for query in self._queries())

    def _queries(self) -> Iterator[Query]:
        for part in (self.train, self.dev, *self.test.values()):
            yield from part.videos
            yield from (query for query in (part.only, part.exclude) if query is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A protocol's videos, each list sorted by `video_id`."""

    train: list[ListedVideo]
    dev: list[ListedVideo]
    test: dict[str, list[ListedVideo]]


def load_protocols(path: Path) -> dict[str, Protocol]:
    """Return the protocols that a file holds, by name: one, or the members of a family.

    Raises:
        TrainError: unreadable, or not a protocol; the message names the key.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainError(f"{path}: can't read the protocol: {error}") from error
    if not isinstance(data, dict):
        raise TrainError(f"{path}: expected the keys of a protocol, found {data!r}")
    members = data.pop("for", {})
    if "name" in data or not isinstance(members, dict):
        raise TrainError(f"{path}: the name is the file's; `for` maps suffixes to parameters")
    for suffix, values in members.items():
        if not isinstance(values, dict):
            raise TrainError(f"{path}: for.{suffix}: expected parameters, found {values!r}")
    named = {f"{path.stem}_{suffix}": values for suffix, values in members.items()}
    try:
        return {
            name: Protocol.model_validate({**_filled(data, values, path), "name": name})
            for name, values in (named or {path.stem: {}}).items()
        }
    except ValidationError as error:
        raise TrainError(f"{path}: {one_line(error, Protocol)}") from error


def _filled(node: Any, values: Mapping[str, object], path: Path) -> Any:
    """Return the YAML with each `$name`, as key or as value, replaced."""
    match node:
        case dict():
            return {_filled(k, values, path): _filled(v, values, path) for k, v in node.items()}
        case list():
            return [_filled(item, values, path) for item in node]
        case str() if node.startswith("$"):
            if node[1:] not in values:
                raise TrainError(f"{path}: {node} is no parameter; known: {', '.join(values)}")
            return values[node[1:]]
        case _:
            return node


def protocol_names(folder: Path = FOLDER) -> tuple[str, ...]:
    """Return the names of all protocols, sorted."""
    return tuple(sorted(name for path in folder.glob("*.yaml") for name in load_protocols(path)))


def load_protocol(name: str, folder: Path = FOLDER) -> Protocol:
    """Return the protocol of this name, or the one that a file holds.

    Args:
        name: of a protocol in `folder`, or a path to a YAML file of your own; of a family's file
            with the member's suffix behind a colon: `mine.yaml:1`.
        folder: of the named protocols.

    Raises:
        TrainError: no such protocol; the message lists those that begin alike.
    """
    file, colon, member = name.partition(".yaml")
    if colon and (not member or member.startswith(":")):
        return _from_file(Path(f"{file}.yaml"), member.removeprefix(":"))
    if "/" in name:
        raise TrainError(f"{name}: a protocol of your own is a file that ends in .yaml")
    for path in folder.glob("*.yaml"):
        if name.startswith(path.stem) and name in (members := load_protocols(path)):
            return members[name]
    known = protocol_names(folder)
    alike = [other for other in known if other.startswith(name.partition("_")[0])]
    raise TrainError(f"unknown protocol {name!r}; known: {', '.join(alike or known)}")


def _from_file(path: Path, suffix: str) -> Protocol:
    members = load_protocols(path)
    name = f"{path.stem}_{suffix}" if suffix else path.stem
    if name not in members:
        named = (f"{path}:{other.removeprefix(f'{path.stem}_')}" for other in members)
        raise TrainError(
            f"{path}: holds no protocol {name!r}; known: "
            f"{', '.join(named if path.stem not in members else [str(path)])}"
        )
    return members[name]


def resolve(
    protocol: Protocol,
    listings: Mapping[str, Sequence[ListedVideo]],
    *,
    allow_overlap: bool = False,
) -> Resolved:
    """Pick a protocol's videos from what the data sets list.

    Args:
        protocol: which.
        listings: by name of the data set, at least those of `protocol.datasets()`.
        allow_overlap: let train, dev and test share what they may not.

    Raises:
        TrainError: a data set is missing; a query, or an attack type it names, matches no video; a
            set lacks a class that it needs; train, dev and test share what must be disjoint.
    """
    absent = set(protocol.datasets()) - listings.keys()
    if absent:
        raise TrainError(f"{protocol.name}: needs the data set {some(absent)}")
    videos = [video for name in protocol.datasets() for video in listings[name]]
    resolved = Resolved(
        train=_select(f"{protocol.name}: train", protocol.train, videos),
        dev=_select(f"{protocol.name}: dev", protocol.dev, videos),
        test={
            name: _select(f"{protocol.name}: test {name}", wanted, videos)
            for name, wanted in protocol.test.items()
        },
    )
    _check_classes(protocol, resolved)
    _check_subjects(protocol, resolved)
    if not allow_overlap:
        _check_disjoint(protocol, resolved)
    return resolved


def resolve_tests(protocol: Protocol, listings: Mapping[str, Sequence[ListedVideo]]) -> Resolved:
    """Pick what a protocol tests on, and its dev videos where any of them is listed.

    Nothing is picked to train, so that a test set can be judged without the training data.

    Args:
        protocol: which.
        listings: by name of the data set, at least those of its test sets.

    Raises:
        TrainError: a data set of a test set is missing; a query, or an attack type it names,
            matches no video; a set lacks a class.
    """
    wanted = {
        name
        for part in protocol.test.values()
        for query in part.videos
        for name in query.dataset or ()
    }
    absent = wanted - listings.keys()
    if absent:
        raise TrainError(
            f"{protocol.name}: tests on the data set {some(absent)}, which is not among the "
            f"prepared faces ({some(listings) or 'none'}): name its folder with --prepared"
        )
    videos = [video for listed in listings.values() for video in listed]
    has_dev = any(query.matches(video) for query in protocol.dev.videos for video in videos)
    resolved = Resolved(
        train=[],
        dev=_select(f"{protocol.name}: dev", protocol.dev, videos) if has_dev else [],
        test={
            name: _select(f"{protocol.name}: test {name}", part, videos)
            for name, part in protocol.test.items()
        },
    )
    _check_both(protocol.name, {"dev": resolved.dev or None, **_named_tests(resolved)})
    return resolved


def _select(where: str, wanted: VideoSet, videos: Sequence[ListedVideo]) -> list[ListedVideo]:
    matched: dict[str, ListedVideo] = {}
    for query in wanted.videos:
        matching = [video for video in videos if query.matches(video)]
        absent = [
            word
            for asked, has in (
                (query.dataset, {video.dataset for video in matching}),
                (query.attack_type, {video.attack_type or BONA_FIDE_TYPE for video in matching}),
                (query.compression, {video.compression for video in matching}),
            )
            for word in asked or ()
            if word not in has
        ]
        if not matching or absent:
            asked_for = query.model_dump(exclude_defaults=True)
            raise TrainError(f"{where}: no video of {', '.join(absent)} among {asked_for}")
        matched |= {video.video_id: video for video in matching}
    kept = [matched[key] for key in sorted(matched)]
    if wanted.only is not None:
        kept = [video for video in kept if wanted.only.matches(video)]
    if wanted.exclude is not None:
        before = len(kept)
        kept = [video for video in kept if not wanted.exclude.matches(video)]
        if len(kept) == before:  # a misspelt value would let in what must stay out
            raise TrainError(f"{where}: `exclude` matches no video: {wanted.exclude}")
    if not kept:
        raise TrainError(f"{where}: no video is left by `only` and `exclude`")
    return kept


def _check_classes(protocol: Protocol, resolved: Resolved) -> None:
    if all(video.label == ATTACK for video in resolved.train):
        raise TrainError(f"{protocol.name}: train holds no bona fide video")
    _check_both(protocol.name, {"dev": resolved.dev, **_named_tests(resolved)})


def _check_both(name: str, parts: Mapping[str, Sequence[ListedVideo] | None]) -> None:
    for part, videos in parts.items():
        if videos is not None and len({video.label for video in videos}) < 2:
            raise TrainError(f"{name}: {part} holds one class only; errors need both")


def _named_tests(resolved: Resolved) -> dict[str, Sequence[ListedVideo]]:
    return {f"test {name}": videos for name, videos in resolved.test.items()}


def _check_subjects(protocol: Protocol, resolved: Resolved) -> None:
    videos = [*resolved.train, *resolved.dev, *(v for part in resolved.test.values() for v in part)]
    unknown = {video.dataset for video in videos if not video.subject}
    if protocol.disjoint == "subject" and unknown:
        raise TrainError(
            f"{protocol.name}: claims disjoint subjects, but {some(unknown)} does not tell"
            " them; say `disjoint: source`"
        )


def _check_disjoint(protocol: Protocol, resolved: Resolved) -> None:
    parts = {"train": resolved.train, "dev": resolved.dev, **resolved.test}
    known = {
        name: identities(Identity(v.video_id, "", v.source_id, v.subject) for v in videos)
        for name, videos in parts.items()
    }
    shared = find_shared(known, protocol.level)
    if shared:
        messages = [told(overlaps, *names) for names, overlaps in shared.items()]
        raise TrainError(f"{protocol.name}: {'; '.join(messages)}")
