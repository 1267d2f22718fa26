"""Changes of the sources of a run, while it runs: by the page's API, and by SIGHUP with a new YAML.

A change is checked as a whole before anything is done, so that one which is refused leaves all as
it is. Sources that a change does not name are not touched.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from stream.decode import source_kind
from stream.errors import ConfigError
from stream.learned import learned_of
from stream.records import SourceState, SourceStatus
from stream.sources import no_such_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stream.config import SourceConfig, StreamConfig
    from stream.pipeline import Progress

log = logging.getLogger(__name__)

_OUTCOMES: Final = ("added", "removed", "changed")


class Watching(Protocol):
    """What watches the sources of a run: a `Pipeline`, or a `Supervisor` of several processes."""

    def remove(self, source_id: str) -> None:
        """See `Pipeline.remove`."""
        ...

    def pause(self, source_id: str) -> None:
        """See `Pipeline.pause`."""
        ...

    def resume(self, source_id: str) -> None:
        """See `Pipeline.resume`."""
        ...

    def progress(self) -> Progress:
        """See `Pipeline.progress`."""
        ...


@dataclass(frozen=True, slots=True)
class SourceView:
    """A source as it is now."""

    config: SourceConfig
    status: SourceStatus | None  # None before its first

    @property
    def is_paused(self) -> bool:
        """Whether it says so itself: a while after it was asked to."""
        return self.status is not None and self.status.state is SourceState.PAUSED


@dataclass(frozen=True, slots=True)
class Changes:
    """What a new configuration changed, source ids in alphabetical order."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()  # closed, and opened as now configured

    def __str__(self) -> str:
        """Say it to people."""
        said = [f"{name} {', '.join(ids)}" for name in _OUTCOMES if (ids := getattr(self, name))]
        return "; ".join(said) or "nothing differs"


class Control:
    """Changes the sources of a run, from any thread.

    Args:
        config: of the run; names the sources that are watched.
        watching: by what.
        add: lets it watch another; raises a ConfigError if it can't.
        hide: told the configuration of each new source before anything can be logged of it.
    """

    def __init__(
        self,
        config: StreamConfig,
        watching: Watching,
        add: Callable[[SourceConfig], None],
        hide: Callable[[SourceConfig], None],
    ) -> None:
        self._config = config
        self._watching = watching
        self._add = add
        self._hide = hide
        self._lock = threading.Lock()  # held for a whole change
        # The status hashes in Redis expire by this.
        self._longest_heartbeat_s = max(source.heartbeat_s for source in config.sources)

    def sources(self) -> list[SourceView]:
        """Return all sources, in the order of the configuration."""
        with self._lock:
            statuses = self._watching.progress().sources
            return [SourceView(each, statuses.get(each.id)) for each in self._config.sources]

    def add(self, source: SourceConfig) -> None:
        """Watch another source.

        Raises:
            ConfigError: there is one of that id, or it can't be opened beside the others.
        """
        with self._lock:
            self._accept((*self._config.sources, source), [source])
            self._add(source)
        log.info("source %s: added", source.id)

    def remove(self, source_id: str) -> None:
        """End a source, and forget it.

        Raises:
            ConfigError: there is none of that id.
        """
        with self._lock:
            self._watching.remove(source_id)
            self._accept([s for s in self._config.sources if s.id != source_id], [])
        log.info("source %s: removed", source_id)

    def change(self, source: SourceConfig) -> None:
        """Close a source and open it as now configured, with its next session.

        Raises:
            ConfigError: there is none of that id, or it can't be opened beside the others.
        """
        with self._lock:
            self._require(source.id)
            self._accept(
                [source if s.id == source.id else s for s in self._config.sources], [source]
            )
            self._replace(source)
        log.info("source %s: changed", source.id)

    def pause(self, source_id: str) -> None:
        """Close a source until it is resumed; `Pipeline.pause` says what may be paused.

        Raises:
            ConfigError: there is none of that id, it has ended, or it is read once, to its end.
        """
        self._watching.pause(source_id)

    def resume(self, source_id: str) -> None:
        """Open a paused source again.

        Raises:
            ConfigError: there is none of that id.
        """
        self._watching.resume(source_id)

    def reconcile(self, wanted: StreamConfig) -> Changes:
        """Make the sources those of a configuration, and return what that changed.

        Raises:
            ConfigError: something else differs, too, or a source can't be opened; nothing was
                changed.
        """
        with self._lock:
            others = _other_differences(self._config, wanted)
            if others:
                raise ConfigError(
                    "only sources can change while it runs; restart for "
                    f"{', '.join(others)}; nothing was changed"
                )
            before = {source.id: source for source in self._config.sources}
            after = {source.id: source for source in wanted.sources}
            changed = [s for s in after.values() if s.id in before and before[s.id] != s]
            added = [s for s in after.values() if s.id not in before]
            removed = sorted(before.keys() - after.keys())
            self._accept(wanted.sources, [*added, *changed])
            for source_id in removed:
                self._watching.remove(source_id)
            for source in changed:
                self._replace(source)
            for source in added:
                self._add(source)
        return Changes(
            added=tuple(sorted(s.id for s in added)),
            removed=tuple(removed),
            changed=tuple(sorted(s.id for s in changed)),
        )

    def _replace(self, source: SourceConfig) -> None:
        self._watching.remove(source.id)
        self._add(source)

    def _require(self, source_id: str) -> None:
        known = [source.id for source in self._config.sources]
        if source_id not in known:
            raise no_such_source(source_id, known)

    def _accept(self, sources: Iterable[SourceConfig], new: Iterable[SourceConfig]) -> None:
        """Check the sources of a change, and make them those of the run.

        Raises:
            ConfigError: one of the new ones can't be opened, or not beside the others, or what it
                learned does not fit.
        """
        config = self._config.with_sources(tuple(sources))
        for source in new:
            self._hide(source)
            source_kind(source)
            learned_of(source, config)
            if source.heartbeat_s > self._longest_heartbeat_s:
                raise ConfigError(
                    f"source {source.id}: heartbeat_s {source.heartbeat_s:g} is longer than that "
                    f"of every source at the start, {self._longest_heartbeat_s:g}; its status "
                    "would expire in Redis: choose a shorter one, or restart"
                )
        self._config = config


def reload_when_told(
    told: threading.Event, control: Control, read: Callable[[], StreamConfig]
) -> None:
    """Make the sources those of the configuration whenever it is to be read again; never returns.

    What is wrong with it is logged, and leaves all as it is.

    Args:
        told: set, and cleared here, each time.
        control: of the run.
        read: returns the configuration as a new start would have it, or raises a ConfigError.
    """
    while told.wait():
        told.clear()
        try:
            level, outcome = logging.INFO, str(control.reconcile(read()))
        except ConfigError as error:
            level, outcome = logging.ERROR, f"all stays as it was: {error}"
        except Exception:
            log.exception("SIGHUP: this is a bug in facewarden; please report it with these lines")
            continue
        log.log(level, "SIGHUP: %s", outcome)


def _other_differences(now: StreamConfig, wanted: StreamConfig) -> list[str]:
    """Return the keys, but `sources`, in which two configurations differ."""
    differing = []
    for name in type(now).model_fields:
        old, new = getattr(now, name), getattr(wanted, name)
        if name == "sources" or old == new:
            continue
        inner = getattr(type(old), "model_fields", None)
        if inner is None or type(old) is not type(new):
            differing.append(name)
        else:
            differing += [f"{name}.{n}" for n in inner if getattr(old, n) != getattr(new, n)]
    return differing
