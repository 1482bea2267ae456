"""What nobody caught: problem JSON below /api/, a page elsewhere."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import DisallowedHost
from django.http import HttpRequest, HttpResponseBase, JsonResponse
from django.views import defaults
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.views import APIView

from foundation.errors import StudioError
from foundation.problems import problem_json, unknown_address


def _is_api(request: HttpRequest) -> bool:
    return request.path_info.startswith("/api/") or "-fedn-reducer/" in request.path_info


class UnknownAddress(APIView):
    """The end of /api/: whatever no room has listed."""

    authentication_classes = []
    permission_classes = [AllowAny]
    schema = None

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        raise unknown_address(request._request)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponseBase:
    if _is_api(request):
        refusal = StudioError("malformed", "The request cannot be read.", 400)
        if isinstance(exception, DisallowedHost):
            refusal = StudioError(
                "wrong_host", "This server is not called by that name (STUDIO_ALLOWED_HOSTS).", 400
            )
        # published clients look for `message`
        return JsonResponse(
            {**refusal.as_problem(), "message": refusal.message},
            status=400,
            content_type="application/problem+json",
        )
    return defaults.bad_request(request, exception)


def server_error(request: HttpRequest) -> HttpResponseBase:
    if _is_api(request):
        return problem_json(StudioError("internal", "Something went wrong on our side; it is logged.", 500))
    return defaults.server_error(request)
