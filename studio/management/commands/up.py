"""`manage.py up`: Studio on one machine, with nothing else installed."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from studio.supervisor.assemble import serve
from studio.supervisor.plan import Options
from studio.supervisor.refusal import Refused


class Command(BaseCommand):
    help = "Serve Studio on this machine: web, combiner, worker, beat, and a private Redis unless REDIS_URL is set."
    # the children check; here they would only delay the start, and there may be no database yet
    requires_system_checks: list[str] = []
    requires_migrations_checks = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--data", type=Path, default=settings.DATA_DIR, help="data directory (STUDIO_DATA)"
        )
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
        parser.add_argument("--port", type=int, default=8000, help="port of the pages; 0: a free one (8000)")
        parser.add_argument(
            "--combiner-port", type=int, default=9000, help="port of the first combiner (9000)"
        )
        parser.add_argument(
            "--lane-port",
            type=int,
            help="port of the first combiner on which our own clients move large models without gRPC (9100)",
        )
        parser.add_argument(
            "--combiners", type=int, default=1, help="how many combiners, on consecutive ports"
        )
        parser.add_argument("--tls-cert", type=Path, help="certificate chain for pages and combiners (PEM)")
        parser.add_argument("--tls-key", type=Path, help="its private key (PEM)")
        parser.add_argument("--insecure", action="store_true", help="allow plain text beyond this machine")
        parser.add_argument("--json", action="store_true", help="announce as one JSON line")

    def handle(self, *_args: Any, **given: Any) -> None:
        options = Options(
            data=given["data"].expanduser().resolve(),
            host=given["host"],
            port=given["port"],
            combiner_port=given["combiner_port"],
            lane_port=given["lane_port"],
            combiners=given["combiners"],
            tls_cert=given["tls_cert"].resolve() if given["tls_cert"] else None,
            tls_key=given["tls_key"].resolve() if given["tls_key"] else None,
            insecure=given["insecure"],
        )

        def say(text: str) -> None:
            self.stdout.write(text)
            self.stdout.flush()

        try:
            serve(
                options,
                json_line=given["json"],
                broker_key_prefix=str(settings.CELERY_BROKER_TRANSPORT_OPTIONS["global_keyprefix"]),
                say=say,
            )
        except Refused as refusal:
            self.stderr.write(str(refusal))
            sys.exit(2)
