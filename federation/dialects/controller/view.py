"""The door of every address here: who asks, and errors as {"message": …}."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, JsonResponse
from django.http.response import HttpResponseBase
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from federation.dialects.controller.callers import caller_of
from foundation.errors import StudioError
from foundation.problems import as_studio_error, headers_of


def answer(content: Any, status: int = 200) -> JsonResponse:
    return JsonResponse(content, safe=False, status=status)


@method_decorator(csrf_exempt, name="dispatch")  # tokens only: no cookie opens these addresses
class ControllerView(View):
    """Subclasses define `get`, `post`, … taking (request, caller, **from the address)."""

    for_devices = False

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            handler = getattr(self, str(request.method).lower(), None)
            if request.method not in ("GET", "POST", "PUT", "PATCH", "DELETE") or handler is None:
                raise StudioError("method_not_allowed", f"{request.method} is not understood here.", 405)
            caller = caller_of(request, kwargs.pop("slug", None))
            if caller.is_device and not self.for_devices:
                raise StudioError(
                    "wrong_token", "A client's token does not open this address: use a project's.", 401
                )
            request.actor = caller.actor  # type: ignore[attr-defined]
            answered: HttpResponseBase = handler(request, caller, **kwargs)
            return answered
        except Exception as error:
            return self.refused(as_studio_error(error, request.path), error)

    def refused(self, refusal: StudioError, error: Exception) -> HttpResponseBase:
        return JsonResponse(
            {"message": refusal.message}, status=refusal.status, headers=headers_of(refusal, error)
        )


class UnknownAddress(View):
    """The end of a project's addresses."""

    @method_decorator(csrf_exempt)
    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        return JsonResponse({"message": f"There is nothing at {request.path}"}, status=404)
