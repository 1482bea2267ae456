"""The door of every address here: who asks, and errors as {"message": …}."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from django.http import HttpRequest, JsonResponse
from django.http.response import HttpResponseBase
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from federation.dialects.controller.callers import Caller, caller_of
from foundation.errors import StudioError
from foundation.problems import as_studio_error, headers_of

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def answer(content: Any, status: int = 200) -> JsonResponse:
    return JsonResponse(content, safe=False, status=status)


@method_decorator(csrf_exempt, name="dispatch")  # tokens only: no cookie opens these addresses
class MessageView(View, ABC):
    """Subclasses define `admitted`, and `get`, `post`, … taking (request, who that found, **from the address)."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            handler = getattr(self, str(request.method).lower(), None)
            if request.method not in _METHODS or handler is None:
                raise StudioError("method_not_allowed", f"{request.method} is not understood here.", 405)
            answered: HttpResponseBase = handler(request, self.admitted(request, kwargs), **kwargs)
            return answered
        except Exception as error:
            return self.refused(as_studio_error(error, request.path), error)

    @abstractmethod
    def admitted(self, request: HttpRequest, address: dict[str, Any]) -> Any:
        """Who asks; takes from `address` what says so. Raises StudioError."""

    def refused(self, refusal: StudioError, error: Exception) -> HttpResponseBase:
        return JsonResponse(
            {"message": refusal.message}, status=refusal.status, headers=headers_of(refusal, error)
        )


class ControllerView(MessageView):
    """Asked in one project, by a `Caller`."""

    for_devices = False

    def admitted(self, request: HttpRequest, address: dict[str, Any]) -> Caller:
        caller = caller_of(request, address.pop("slug", None))
        if caller.is_device and not self.for_devices:
            raise StudioError(
                "wrong_token", "A client's token does not open this address: use a project's.", 401
            )
        request.actor = caller.actor  # type: ignore[attr-defined]
        return caller


class UnknownAddress(MessageView):
    """The end of a project's addresses."""

    def admitted(self, request: HttpRequest, address: dict[str, Any]) -> None:
        raise StudioError("not_found", f"There is nothing at {request.path}", 404)

    def get(self, request: HttpRequest, nobody: None, **address: Any) -> HttpResponseBase:
        raise AssertionError("nobody is admitted")

    post = put = patch = delete = get
