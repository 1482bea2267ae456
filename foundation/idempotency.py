"""`Idempotency-Key`: a creating request that is repeated creates once, and is answered alike.

Per actor and route, for 24 hours. The answer is kept sealed, since it may hold a secret that is shown once.
"""

from __future__ import annotations

import base64
import datetime as dt
import functools
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from foundation.errors import StudioError, invalid
from foundation.models import IdempotentAnswer

KEPT = dt.timedelta(hours=24)
DIED_AFTER = dt.timedelta(seconds=60)  # a first request that has not answered by then is taken to be dead
DIED_AFTER_WITH_FILES = dt.timedelta(minutes=15)
WAIT_S = 10.0
_LOOK_EVERY_S = 0.05
Handler = Callable[..., Response]


def idempotent(handler: Handler) -> Handler:
    """Wrap a view's `post`, which answers a plain `Response`.

    Without files, what the handler writes and the kept answer commit together. Handlers that take files store them
    before they open a transaction of their own, so that nobody waits for an upload.
    """

    @functools.wraps(handler)
    def wrapped(view: Any, request: Request, *args: Any, **kwargs: Any) -> Response:
        key = request.META.get("HTTP_IDEMPOTENCY_KEY")
        if key is None:
            return handler(view, request, *args, **kwargs)
        if not 1 <= len(key) <= 200 or not key.isprintable():
            raise invalid("Idempotency-Key", "An Idempotency-Key has 1 to 200 printable characters.")
        claim = _Claim(request, key)
        answer = claim.take()
        if answer is not None:
            return answer
        try:
            if request.FILES:
                response = handler(view, request, *args, **kwargs)
                claim.keep(response)
            else:
                with transaction.atomic():
                    response = handler(view, request, *args, **kwargs)
                    claim.keep(response)
                    if response.status_code >= 400:
                        transaction.set_rollback(True)
        except BaseException:
            claim.drop()
            raise
        if response.status_code >= 400:
            claim.drop()
        return response

    return wrapped


class _Claim:
    """One request's claim on its key."""

    def __init__(self, request: Request, key: str) -> None:
        actor = getattr(request, "actor", None)
        self.actor = getattr(actor, "key", "anonymous")
        self.route = (
            request.path if len(request.path) <= 200 else hashlib.sha256(request.path.encode()).hexdigest()
        )
        self.key = key
        self.body = body_sha256(request)
        self.patience = DIED_AFTER_WITH_FILES if request.FILES else DIED_AFTER
        self.row: IdempotentAnswer | None = None

    def take(self) -> Response | None:
        """None when this request is to do the work; else the answer of the one that did it."""
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                with transaction.atomic():
                    self.row = IdempotentAnswer.objects.create(
                        actor=self.actor, route=self.route, key=self.key, body_sha256=self.body
                    )
                return None
            except IntegrityError:
                pass
            first = IdempotentAnswer.objects.filter(actor=self.actor, route=self.route, key=self.key).first()
            if first is None:
                continue
            now = timezone.now()
            if first.created_at < now - KEPT:
                IdempotentAnswer.objects.filter(pk=first.pk, created_at=first.created_at).delete()
                continue
            if first.body_sha256 != self.body:
                raise StudioError(
                    "idempotency_conflict",
                    "This Idempotency-Key was used with another request body: use a new key for a new request.",
                    409,
                )
            if first.status is not None:
                return Response(
                    self._open(first.body), status=first.status, headers={"Idempotency-Replayed": "true"}
                )
            if first.created_at < now - self.patience:
                taken = IdempotentAnswer.objects.filter(
                    pk=first.pk, created_at=first.created_at, status=None
                ).update(created_at=now)
                if taken:
                    first.created_at = now
                    self.row = first
                    return None
                continue
            if time.monotonic() > deadline:
                raise StudioError(
                    "in_progress",
                    "The first request with this Idempotency-Key is still running: repeat this one in a moment.",
                    409,
                    retry_after_s=1,
                )
            time.sleep(_LOOK_EVERY_S)

    def keep(self, response: Response) -> None:
        if response.status_code >= 400 or self.row is None:
            return
        body = JSONRenderer().render(response.data)
        kept = IdempotentAnswer.objects.filter(pk=self.row.pk, status=None, created_at=self.row.created_at)
        if not kept.update(status=response.status_code, body=self._seal(body)):
            raise StudioError(
                "in_progress", "This request took so long that a repetition of it took over.", 409
            )

    def drop(self) -> None:
        if self.row is not None:
            IdempotentAnswer.objects.filter(
                pk=self.row.pk, status=None, created_at=self.row.created_at
            ).delete()

    # Sealed with a key that is in no database: HMAC-SHA256 in counter mode, then a tag over all of it.

    def _stream(self, nonce: bytes, length: int) -> bytes:
        blocks = (length + 31) // 32
        key = self._derived("seal")
        return b"".join(
            hmac.digest(key, nonce + number.to_bytes(8, "big"), "sha256") for number in range(blocks)
        )[:length]

    def _derived(self, use: str) -> bytes:
        about = "\x00".join(["idempotency", use, self.actor, self.route, self.key])
        return hmac.digest(settings.SECRET_KEY.encode(), about.encode(), "sha256")

    def _seal(self, plain: bytes) -> dict[str, str]:
        nonce = secrets.token_bytes(16)
        sealed = bytes(a ^ b for a, b in zip(plain, self._stream(nonce, len(plain)), strict=True))
        tag = hmac.digest(self._derived("tag"), nonce + sealed, "sha256")
        return {"sealed": base64.b64encode(nonce + tag + sealed).decode()}

    def _open(self, kept: Any) -> Any:
        raw = base64.b64decode(kept["sealed"])
        nonce, tag, sealed = raw[:16], raw[16:48], raw[48:]
        if not hmac.compare_digest(tag, hmac.digest(self._derived("tag"), nonce + sealed, "sha256")):
            # the secret key was changed since
            raise StudioError(
                "idempotency_conflict", "The answer to this key cannot be read any more: use a new key.", 409
            )
        plain = bytes(a ^ b for a, b in zip(sealed, self._stream(nonce, len(sealed)), strict=True))
        return json.loads(plain) if plain else None


def body_sha256(request: Request) -> str:
    """A digest of what was sent: fields by name, files by field, name and content (read in chunks, then rewound)."""
    whole = hashlib.sha256()
    whole.update(request.META.get("QUERY_STRING", "").encode())
    data = request.data
    if hasattr(data, "lists"):
        fields = sorted((name, values) for name, values in data.lists() if name not in request.FILES)
        whole.update(json.dumps(fields, default=str).encode())
        for name, files in sorted(request.FILES.lists()):
            for file in files:
                content = hashlib.sha256()
                for chunk in file.chunks():
                    content.update(chunk)
                file.seek(0)
                whole.update(json.dumps([name, file.name, content.hexdigest()]).encode())
    else:
        whole.update(json.dumps(data, sort_keys=True, default=str).encode())
    return whole.hexdigest()


def forget_old_answers() -> int:
    """Delete answers older than 24 hours; answers how many."""
    gone, _each = IdempotentAnswer.objects.filter(created_at__lt=timezone.now() - KEPT).delete()
    return gone
