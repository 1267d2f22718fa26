"""A supervisor whose sources are changed by lines on its standard input; a program for tests.

    python -m tests.stream.workers.steered CONFIG WORKERS

A line is a JSON list: `["add", {source}]`, `["change", {source}]`, `["remove", "id"]`, `pause`,
`resume`, or `["sources"]`. Each is answered by a line of JSON on standard output: null, why it was
refused, or the state of each source.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from pathlib import Path
from typing import Any

from stream.config import SourceConfig, load_config
from stream.console import hide_in_logs, set_up_logging
from stream.control import Control
from stream.errors import ConfigError
from stream.redact import secrets_of
from stream.signals import StopSignals
from stream.workers.supervisor import Supervisor


def _hide(source: SourceConfig) -> None:
    hide_in_logs(secrets_of(source.uri.get_secret_value()))


def _do(control: Control, verb: str, *arguments: Any) -> Any:
    match verb:
        case "sources":
            views = control.sources()
            return {v.config.id: v.status.state if v.status else None for v in views}
        case "add" | "change":
            getattr(control, verb)(SourceConfig.model_validate(arguments[0]))
        case _:
            getattr(control, verb)(*arguments)
    return None


def _obey(control: Control) -> None:
    for line in sys.stdin:
        try:
            answer = _do(control, *json.loads(line))
        except ConfigError as error:
            answer = str(error)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def main() -> None:
    signals = StopSignals()
    set_up_logging("text", verbose=False)
    config = load_config(Path(sys.argv[1]), [])
    supervisor = Supervisor(
        config, int(sys.argv[2]), run="0a1b2c3d", signals=signals, log_level=logging.INFO
    )
    control = Control(config, supervisor, supervisor.add, _hide)
    threading.Thread(target=_obey, args=(control,), daemon=True).start()
    supervisor.run(lambda _progress: None)


if __name__ == "__main__":
    main()
