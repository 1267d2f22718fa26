"""The command line of the bridges: `python -m stream.bridge mqtt`."""

from __future__ import annotations

import os
import signal
import sys

if __name__ == "__main__":
    # As in stream.subscribe: there is nothing to tidy up. The message in hand comes again, and the
    # broker publishes our last will.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})

import logging
from pathlib import Path
from typing import Final, NoReturn

import click

from stream.errors import ConfigError
from stream.publish.redis_client import read_address
from stream.redact import RedactingFilter, secrets_of
from stream.subscribe import Subscription

# After a restart, what was in hand comes first, so soon; and no outage makes a message a dead one.
_RECLAIM_S: Final = 2.0
_MAX_DELIVERIES: Final = 1000


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Pass messages from Redis on to other systems."""


@main.command()
@click.option("--redis", "url", envvar="REDIS_URL", required=True, help="Or $REDIS_URL.")
@click.option(
    "--broker", envvar="MQTT_URL", required=True, help="mqtt[s]://user:password@host; or $MQTT_URL."
)
@click.option("--prefix", default="facewarden", show_default=True, help="Of all topics.")
@click.option(
    "--home-assistant",
    default="homeassistant",
    show_default=True,
    help="Prefix of its discovery topics; empty: no discovery.",
)
@click.option("--group", default="mqtt", show_default=True, help="Of consumers, in Redis.")
@click.option("--from-start", is_flag=True, help="A new group begins with the oldest entry kept.")
@click.option("--namespace", default="facewarden", show_default=True, help="First part of keys.")
@click.option("--ca-file", type=click.Path(path_type=Path), help="CA of a rediss:// server.")
@click.option("--broker-ca-file", type=click.Path(path_type=Path), help="CA of an mqtts:// broker.")
def mqtt(
    url: str,
    broker: str,
    prefix: str,
    home_assistant: str,
    group: str,
    from_start: bool,
    namespace: str,
    ca_file: Path | None,
    broker_ca_file: Path | None,
) -> None:
    """Publish alerts, feed alerts and source events on MQTT topics, until stopped."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.addFilter(RedactingFilter(secrets_of(url) | secrets_of(broker)))
    try:
        from stream.bridge.broker import Broker, read_broker
        from stream.bridge.mqtt import MqttBridge, StatusWatch
    except ImportError as error:
        _refuse(f"MQTT needs the extra `mqtt` ({error}): pip install -r requirements/mqtt.txt")
    try:
        address = read_address(url, ca_file)
        subscription = Subscription(
            url,
            group=group,
            consumer="bridge",  # the same after a restart
            from_start=from_start,
            namespace=namespace,
            ca_file=ca_file,
            reclaim_s=_RECLAIM_S,
            max_deliveries=_MAX_DELIVERIES,
        )
        with Broker(
            read_broker(broker), presence=f"{prefix}/bridge", ca_file=broker_ca_file
        ) as connection:
            connection.wait()  # before a message is taken into the hand
            bridge = MqttBridge(connection, prefix=prefix, home_assistant=home_assistant or None)
            StatusWatch(bridge, address, namespace)
            with subscription as messages:
                for message in messages:
                    bridge.pass_on(message)
    except (ConfigError, OSError) as error:
        _refuse(str(error))


def _refuse(why: str) -> NoReturn:
    click.echo(f"error: {why}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
