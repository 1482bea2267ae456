"""Listing, counting and getting any noun."""

from __future__ import annotations

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from federation.dialects.controller.asked import fields_of, page_of
from federation.dialects.controller.callers import Caller
from federation.dialects.controller.noun import Noun
from federation.dialects.controller.view import ControllerView, answer


class NounView(ControllerView):
    noun: Noun = None  # type: ignore[assignment]  # as_view() gives it, to what the class has already


class Many(NounView):
    def get(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        return answer(self.noun.listed(caller, request.GET.dict(), page_of(request)))


class ManyByBody(NounView):
    def post(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        return answer(self.noun.listed(caller, fields_of(request), page_of(request)))


class Count(NounView):
    """A bare number."""

    def get(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        return answer(self.noun.matching(caller, request.GET.dict()).count())

    def post(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        return answer(self.noun.matching(caller, fields_of(request)).count())


class One(NounView):
    def get(self, request: HttpRequest, caller: Caller, pk: str) -> HttpResponseBase:
        return answer(self.noun.one(caller, pk))
