"""What this dialect's HTTP views share: `{"message": …}` for every refusal, and fields read from small JSON."""

from __future__ import annotations

import uuid
from typing import Any

from rest_framework.parsers import FormParser, MultiPartParser
from rest_framework.permissions import AllowAny
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from foundation.errors import StudioError, invalid
from foundation.parsing import BoundedJSONParser
from foundation.problems import as_studio_error, headers_of
from projects.tokens.authentication import TokenAuthentication
from projects.tokens.models import Token

UNKNOWN_CALLER = "Send the token that you were given: Authorization: Bearer …"


class MessageView(APIView):
    """Cookies are not looked at: these addresses are for programs."""

    authentication_classes = [TokenAuthentication]
    permission_classes = [AllowAny]  # each view asks for the token it needs, and answers 401 without
    parser_classes = [BoundedJSONParser, FormParser, MultiPartParser]
    renderer_classes = [JSONRenderer]
    schema = None  # the OpenAPI document describes our own API

    def handle_exception(self, exc: Exception) -> Response:
        refusal = as_studio_error(exc, path=self.request.path)
        return Response({"message": refusal.message}, status=refusal.status, headers=headers_of(refusal, exc))


def token_of(request: Request) -> Token:
    """Raises StudioError 401 without one."""
    if not isinstance(request.auth, Token):
        raise StudioError("no_token", UNKNOWN_CALLER, 401)
    return request.auth


def fields_of(request: Request) -> dict[str, Any]:
    """The JSON object or the form that was sent; nothing counts as empty. Raises StudioError 400."""
    data = request.data
    if hasattr(data, "dict"):
        data = data.dict()
    if not isinstance(data, dict):
        raise invalid("body", "Send a JSON object.")
    return data


def text(fields: dict[str, Any], name: str, *, most: int = 200, default: str = "") -> str:
    value = fields.get(name)
    if value is None or value == "":
        return default
    if not isinstance(value, str) or len(value) > most:
        raise invalid(name, f"{name} must be text of at most {most} characters.")
    return value


def whole(fields: dict[str, Any], name: str, *, low: int, high: int, default: int | None = None) -> int:
    value = fields.get(name, default)
    try:
        number = int(value) if not isinstance(value, bool) and value == int(value) else None  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        try:
            number = int(str(value)) if str(value).lstrip("-").isdecimal() and len(str(value)) < 20 else None
        except ValueError:
            number = None
    if number is None or not low <= number <= high:
        raise invalid(name, f"{name} must be a whole number from {low} to {high}.")
    return number


def optional_id(fields: dict[str, Any], name: str) -> uuid.UUID | None:
    value = fields.get(name)
    if value is None or value == "":
        return None
    try:
        return uuid.UUID(value if isinstance(value, str) else "")
    except ValueError:
        raise invalid(name, f"{name} must be a UUID.") from None
