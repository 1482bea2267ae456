"""Thousands of clients in a bench's own database at once, each with a token: `python -m tests.bench.fleet SLUG COUNT`.

By rows, not by REST: a bench measures rounds, not signing up. `STUDIO_DATA` names the data directory. Prints the
tokens, one a line.
"""

from __future__ import annotations

import os
import secrets
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "studio.settings")
    import django

    django.setup()
    from django.conf import settings

    from clients_app.models import Client
    from projects.models import Project
    from projects.tokens.models import Token
    from projects.tokens.services import PREFIX, digest_of

    slug, count = sys.argv[1], int(sys.argv[2])
    project = Project.objects.get(slug=slug)
    taken = Client.objects.filter(project=project).count()
    clients = Client.objects.bulk_create(
        [Client(project=project, name=f"echo-{n:05}") for n in range(taken, taken + count)], batch_size=500
    )
    pepper, rows, shown = max(settings.TOKEN_PEPPERS), [], []
    for client in clients:
        secret, key_id = secrets.token_urlsafe(32), secrets.token_hex(8)
        rows.append(
            Token(
                kind="client", name=client.name, project=project, client=client, key_id=key_id, pepper=pepper,
                digest=digest_of(secret, pepper),
            )
        )  # fmt: skip
        shown.append(f"{PREFIX}_{key_id}_{secret}")
    Token.objects.bulk_create(rows, batch_size=500)
    print("\n".join(shown))


if __name__ == "__main__":
    main()
