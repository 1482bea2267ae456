"""`manage.py combiner`: one combiner. It is handed the dialects here."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import signal
import sys
import time
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from clients_app.placement import NAME_LABEL, draining_left
from clients_app.services import checked_pin, drain_combiner, undrain_combiner
from federation.combiner.core import CombinerConfig, CombinerCore
from federation.combiner.server import Listeners, build_server, listen
from federation.dialects.fedn.servicer import register as fedn
from federation.dialects.native.lane import Lane, tls_context
from federation.dialects.native.servicer import register as native
from federation.dialects.scaleout.servicer import register as scaleout
from foundation.errors import StudioError
from projects.actors import OPERATOR
from studio.version import VERSION

DIALECTS = [native, fedn, scaleout]


class Command(BaseCommand):
    help = "Serve client streams: deliver tasks, take updates, fold them."
    requires_system_checks = ()  # those are the web process's; a combiner starts faster without

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--name", default="combiner-1", help="the combiner's name; its spool is kept under it"
        )
        parser.add_argument(
            "--host", default="127.0.0.1", help="address of the plain-text listener; empty for none"
        )
        parser.add_argument("--port", type=int, default=9000, help="0 picks a free one")
        parser.add_argument("--tls-host", default="", help="address of the TLS listener (default: --host)")
        parser.add_argument("--tls-port", type=int, default=9443)
        parser.add_argument("--tls-cert", type=Path, help="PEM certificate chain")
        parser.add_argument("--tls-key", type=Path, help="PEM private key")
        parser.add_argument(
            "--public-address", default="", help="host:port that clients reach the plain listener by"
        )
        parser.add_argument("--public-tls-address", default="", help="host:port that clients reach TLS by")
        parser.add_argument(
            "--lane-port",
            type=int,
            help="where our own clients move large models without gRPC, on the same host and with TLS as it has "
            "(default: a free port on loopback, else none; 0 picks a free one, -1: none)",
        )
        parser.add_argument(
            "--public-lane-address",
            default="",
            help="host:port that clients reach the lane by, if not the same host",
        )
        parser.add_argument("--spool", type=Path, help="folder of its own (default: in the data directory)")
        parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE")
        parser.add_argument("--insecure", action="store_true", help="allow plain text beyond loopback")
        parser.add_argument("--json", action="store_true", help="print one JSON line once it serves")
        parser.add_argument(
            "--grace",
            type=float,
            default=0.0,
            metavar="SECONDS",
            help="when asked to stop (SIGTERM), first give the clients away and finish the shares, for so long at most",
        )
        of_a_running_one = parser.add_argument_group("of one that runs anywhere, named by --name")
        of_a_running_one.add_argument(
            "--drain", action="store_true", help="give its clients to others and wait until it may be stopped"
        )
        of_a_running_one.add_argument("--resume", action="store_true", help="let it take clients again")
        of_a_running_one.add_argument(
            "--wait", type=float, default=300.0, metavar="SECONDS", help="how long --drain waits"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            if options["drain"] and options["resume"]:
                raise StudioError("drain_or_resume", "Give either --drain or --resume.")
            if options["drain"]:
                self.drain(options["name"], options["wait"])
            elif options["resume"]:
                undrain_combiner(options["name"], actor=OPERATOR)
                self.stdout.write(f"{options['name']} takes clients again.")
            else:
                asyncio.run(serve(options))
        except StudioError as error:
            raise CommandError(error.message) from None

    def drain(self, name: str, wait_s: float) -> None:
        """Ask for it, and tell what is left until nothing is. Raises StudioError `still_draining` after `wait_s`."""
        drain_combiner(name, actor=OPERATOR)
        until = time.monotonic() + wait_s
        said = ""
        while not (left := draining_left(name)).nothing:
            if str(left) != said:
                self.stdout.write(f"{name}: {left}")
                said = str(left)
            if time.monotonic() >= until:
                raise StudioError("still_draining", f"{name} is still being drained: {left}.")
            time.sleep(min(1.0, wait_s))
        staying = f" {left.staying} published clients stay on it until it stops." if left.staying else ""
        self.stdout.write(f"{name} is drained: it can be stopped.{staying}")


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return False


def read_listeners(options: dict[str, Any]) -> Listeners:
    tls = bool(options["tls_cert"] and options["tls_key"])
    host = options["host"]
    if bool(options["tls_cert"]) != bool(options["tls_key"]):
        raise StudioError("tls_files", "TLS needs both --tls-cert and --tls-key.")
    if host and not is_loopback(host) and not options["insecure"]:
        if not tls:
            raise StudioError(
                "insecure",
                f"Plain text on {host} would send tokens and models readable over the network. Give --tls-cert and "
                "--tls-key, or --insecure if the network is yours.",
            )
        return _with_lane(
            Listeners(
                tls_host=options["tls_host"] or host,
                tls_port=options["tls_port"],
                tls_cert=options["tls_cert"],
                tls_key=options["tls_key"],
            ),
            options["lane_port"],
        )
    listeners = Listeners(
        host=host,
        port=options["port"],
        tls_host=(options["tls_host"] or host or "127.0.0.1") if tls else "",
        tls_port=options["tls_port"],
        tls_cert=options["tls_cert"],
        tls_key=options["tls_key"],
    )
    return _with_lane(listeners, options["lane_port"])


def _with_lane(listeners: Listeners, asked: int | None) -> Listeners:
    """A port that nobody named would be behind the firewall, so only loopback has one unasked."""
    if asked is None:
        asked = 0 if is_loopback(listeners.main_host) else -1
    if not listeners.main_host or asked < 0:
        return listeners
    return replace(listeners, lane_port=asked)


def read_labels(given: list[str]) -> dict[str, str]:
    """Labels as clients are pinned by them. Raises StudioError 400."""
    labels: dict[str, str] = {}
    for text in given:
        try:
            one = checked_pin(text)
        except StudioError:
            one = {}
        if len(one) != 1 or NAME_LABEL in one:
            raise StudioError(
                "label", f"A label is KEY=VALUE, such as region=eu; “{text}” is not, or has a taken key."
            )
        labels |= one
    return labels


async def serve(options: dict[str, Any]) -> None:
    folder = options["spool"] or settings.DATA_DIR / "combiners" / options["name"]
    listeners = read_listeners(options)
    labels = read_labels(options["label"])
    core = CombinerCore(Path(folder))
    server = build_server(core, DIALECTS)
    plain, tls = listen(server, listeners)
    lane = Lane(core)
    lane_port = 0
    if listeners.lane_port is not None:
        lane_port = await lane.listen(
            listeners.main_host, listeners.lane_port, tls_context(listeners) if listeners.tls else None
        )
    await core.start(
        CombinerConfig(
            name=options["name"],
            version=VERSION,
            address=options["public_address"] or plain,
            tls_address=options["public_tls_address"] or tls,
            labels=labels,
            lane=(options["public_lane_address"] or f":{lane_port}") if lane_port else "",
            lane_tls=listeners.tls,
        )
    )
    await lane.serve()
    await server.start()
    line = {
        "combiner": plain or tls,
        "address": plain,
        "tls": tls or None,
        "lane": lane_port or None,
        "name": options["name"],
    }
    sys.stdout.write(
        (json.dumps(line) if options["json"] else f"{options['name']} serves {plain or tls}") + "\n"
    )
    sys.stdout.flush()
    asked, hurried = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: (hurried if asked.is_set() else asked).set())
    await _first(asked.wait(), core.over.wait())
    if options["grace"] > 0 and not core.over.is_set():
        await _first(core.drain(options["grace"]), hurried.wait())  # asked twice, it stops at once
    with contextlib.suppress(TimeoutError):
        await core.stop()
    lane.close()
    await server.stop(grace=1.0)
    if core.over.is_set():
        raise StudioError("combiner_over", core.why)


async def _first(*works: Coroutine[Any, Any, Any]) -> None:
    """Until one of them is done; the others are given up."""
    waiters = [asyncio.ensure_future(work) for work in works]
    await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
    for waiter in waiters:
        waiter.cancel()
    await asyncio.gather(*waiters, return_exceptions=True)
