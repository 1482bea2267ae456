"""Every REST error as problem JSON (RFC 9457): whatever was raised, one shape."""

from __future__ import annotations

import logging
import uuid
from typing import Any

from django.core.exceptions import (
    ObjectDoesNotExist,
    PermissionDenied,
    RequestDataTooBig,
    SuspiciousOperation,
)
from django.core.exceptions import ValidationError as DjangoValidationError
from django.db import IntegrityError, OperationalError
from django.http import Http404, HttpRequest, JsonResponse
from rest_framework import exceptions
from rest_framework.renderers import JSONRenderer
from rest_framework.response import Response

from foundation.errors import StudioError, not_found

log = logging.getLogger(__name__)
PROBLEM_TYPE = "application/problem+json"


def problem_response(error: Exception, context: dict[str, Any]) -> Response:
    """Django REST framework's exception handler."""
    request = context.get("request")
    refusal = as_studio_error(error, path=getattr(request, "path", ""))
    response = Response(refusal.as_problem(), status=refusal.status, headers=headers_of(refusal, error))
    accepted = getattr(request, "accepted_renderer", None)
    if accepted is None or accepted.format != "api":  # a person in a browser keeps the browsable page
        if request is not None and accepted is not None:
            request.accepted_renderer = JSONRenderer()
            request.accepted_media_type = "application/json"
        response.content_type = PROBLEM_TYPE
    return response


def problem_json(error: StudioError) -> JsonResponse:
    """The same, outside of REST framework."""
    return JsonResponse(
        error.as_problem(), status=error.status, headers=headers_of(error, error), content_type=PROBLEM_TYPE
    )


def headers_of(refusal: StudioError, error: Exception) -> dict[str, str]:
    headers: dict[str, str] = {}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = getattr(error, "auth_header", None) or 'Bearer realm="Studio"'
    if wait := refusal.data.get("retry_after_s"):
        headers["Retry-After"] = str(wait)
    return headers


def as_studio_error(error: Exception, path: str = "") -> StudioError:
    """Any exception as a refusal that a person can act on; what nobody foresaw is logged and named by a reference."""
    match error:
        case StudioError():
            return error
        case exceptions.ValidationError():
            return _validation(error.detail)
        case DjangoValidationError():
            return _validation(error.message_dict if hasattr(error, "error_dict") else error.messages)
        case exceptions.ParseError():
            return StudioError("malformed", f"The request body cannot be read: {error.detail}", 400)
        case exceptions.NotAuthenticated():
            return StudioError(
                "not_authenticated", "Log in, or send a token: Authorization: Bearer stu_…", 401
            )
        case exceptions.AuthenticationFailed():
            return StudioError("authentication_failed", str(error.detail), 401)
        case exceptions.PermissionDenied():
            return StudioError("forbidden", str(error.detail), 403)
        case exceptions.MethodNotAllowed():
            return StudioError("method_not_allowed", str(error.detail), 405)
        case exceptions.NotAcceptable():
            return StudioError("not_acceptable", "The answer comes as application/json only.", 406)
        case exceptions.UnsupportedMediaType():
            return StudioError("unsupported_media_type", str(error.detail), 415)
        case exceptions.Throttled():
            wait = int(getattr(error, "wait", None) or 1)
            return StudioError(
                "throttled", f"Too many requests: try again in {wait} s.", 429, retry_after_s=wait
            )
        case Http404() | exceptions.NotFound() | ObjectDoesNotExist():
            return not_found("thing at this address")
        case PermissionDenied():
            return StudioError("forbidden", "You may not do this.", 403)
        case RequestDataTooBig():
            return StudioError("too_large", "The request body is too large.", 413)
        case SuspiciousOperation():
            return StudioError("malformed", "The request cannot be read.", 400)
        case exceptions.APIException():
            return StudioError(str(error.default_code), str(error.detail), error.status_code)
        case IntegrityError():
            reference = _reference(error, path)
            return StudioError(
                "conflict",
                "This contradicts what is there already, perhaps something made a moment ago: look again.",
                409,
                reference=reference,
            )
        case OperationalError():
            reference = _reference(error, path)
            return StudioError(
                "unavailable",
                "The database does not answer: try again.",
                503,
                reference=reference,
                retry_after_s=2,
            )
    reference = _reference(error, path)
    return StudioError(
        "internal",
        f"Something went wrong on our side. It is logged as {reference}.",
        500,
        reference=reference,
    )


def _reference(error: Exception, path: str) -> str:
    reference = uuid.uuid4().hex[:12]
    log.error("request.failed reference=%s path=%s", reference, path, exc_info=error)
    return reference


def _validation(detail: Any) -> StudioError:
    errors = detail if isinstance(detail, dict) else {"non_field_errors": detail}
    first, said = next(iter(errors.items()))
    sentence = _first_sentence(said)
    where = "" if first == "non_field_errors" else f"{first}: "
    return StudioError("invalid", f"{where}{sentence}", 400, errors=errors)


def _first_sentence(said: Any) -> str:
    while isinstance(said, (list, tuple, dict)):
        if not said:
            return "This is not valid."
        said = next(iter(said.values())) if isinstance(said, dict) else said[0]
    return str(said)


def unknown_address(request: HttpRequest) -> StudioError:
    """For an address below /api/ that leads nowhere."""
    if request.path.endswith("/"):
        return StudioError("not_found", f"There is nothing at {request.path}", 404)
    return StudioError(
        "not_found", f"There is nothing at {request.path}. Addresses of the API end with a slash.", 404
    )
