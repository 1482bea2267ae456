"""REST: sessions, their rounds and assignments."""

from __future__ import annotations

import uuid
from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import status
from rest_framework.generics import GenericAPIView, ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from federation.sessions import selectors, services
from federation.sessions.config import parse_spec
from federation.sessions.models import Assignment, Round, Session
from federation.sessions.serializers import AssignmentOut, ContinueIn, RoundOut, SessionIn, SessionOut
from foundation.idempotency import idempotent
from projects.actors import actor_of
from projects.choices import Action
from projects.selectors import project_by_slug


def _session(request: Request, slug: str, pk: uuid.UUID, action: Action = Action.VIEW) -> Session:
    actor = actor_of(request)
    return selectors.session_of(actor, project_by_slug(actor, slug), pk, action)


@extend_schema(tags=["sessions"])
class Sessions(ListAPIView[Session]):
    serializer_class = SessionOut
    queryset = Session.objects.none()
    filterset_fields = {"status": ["exact"], "name": ["exact", "icontains"]}

    def get_queryset(self) -> QuerySet[Session]:
        actor = actor_of(self.request)
        return selectors.sessions_of(actor, project_by_slug(actor, self.kwargs["slug"]))

    @extend_schema(operation_id="sessions_create", request=SessionIn, responses={201: SessionOut})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Create a session, and start it unless `start` is false."""
        actor = actor_of(request)
        project = project_by_slug(actor, slug, Action.RUN)
        given = SessionIn(data=request.data)
        given.is_valid(raise_exception=True)
        spec = parse_spec(given.validated_data)
        session = services.create_session(actor=actor, project=project, spec=spec)
        if given.validated_data["start"]:
            session = services.start_session(actor=actor, session=session)
        return Response(SessionOut(session).data, status=status.HTTP_201_CREATED)


@extend_schema(tags=["sessions"])
class OneSession(GenericAPIView[Session]):
    serializer_class = SessionOut
    queryset = Session.objects.none()

    @extend_schema(operation_id="sessions_retrieve")
    def get(self, request: Request, slug: str, pk: uuid.UUID) -> Response:
        return Response(SessionOut(_session(request, slug, pk)).data)


@extend_schema(tags=["sessions"])
class StartSession(GenericAPIView[Session]):
    queryset = Session.objects.none()

    @extend_schema(operation_id="sessions_start", request=None, responses={200: SessionOut})
    def post(self, request: Request, slug: str, pk: uuid.UUID) -> Response:
        session = _session(request, slug, pk, Action.RUN)
        return Response(SessionOut(services.start_session(actor=actor_of(request), session=session)).data)


@extend_schema(tags=["sessions"])
class StopSession(GenericAPIView[Session]):
    queryset = Session.objects.none()

    @extend_schema(operation_id="sessions_stop", request=None, responses={200: SessionOut})
    def post(self, request: Request, slug: str, pk: uuid.UUID) -> Response:
        """Ask it to stop: clients are told, and stop working."""
        session = _session(request, slug, pk, Action.RUN)
        return Response(SessionOut(services.stop_session(actor=actor_of(request), session=session)).data)


@extend_schema(tags=["sessions"])
class ContinueSession(GenericAPIView[Session]):
    serializer_class = ContinueIn
    queryset = Session.objects.none()

    @extend_schema(operation_id="sessions_continue", request=ContinueIn, responses={200: SessionOut})
    def post(self, request: Request, slug: str, pk: uuid.UUID) -> Response:
        """Go on from the current model for more rounds."""
        session = _session(request, slug, pk, Action.RUN)
        given = ContinueIn(data=request.data)
        given.is_valid(raise_exception=True)
        rounds = given.validated_data["rounds"]
        session = services.continue_session(actor=actor_of(request), session=session, rounds=rounds)
        return Response(SessionOut(session).data)


@extend_schema(tags=["sessions"])
class Rounds(ListAPIView[Any]):
    serializer_class = RoundOut
    queryset = Round.objects.none()
    filterset_fields = ["status", "number"]

    def get_queryset(self) -> QuerySet[Round]:
        return selectors.rounds_of(_session(self.request, self.kwargs["slug"], self.kwargs["pk"]))

    def get_serializer(self, *args: Any, **kwargs: Any) -> Any:
        """Rows of a page become lines with counts and metrics, in two queries."""
        if args and isinstance(args[0], list):
            args = (selectors.round_lines(args[0]), *args[1:])
        return super().get_serializer(*args, **kwargs)


@extend_schema(tags=["sessions"])
class Assignments(ListAPIView[Assignment]):
    serializer_class = AssignmentOut
    queryset = Assignment.objects.none()
    filterset_fields = {
        "status": ["exact"],
        "kind": ["exact"],
        "client": ["exact"],
        "round": ["exact"],
        "client__name": ["icontains"],
    }

    def get_queryset(self) -> QuerySet[Assignment]:
        return selectors.assignments_of(_session(self.request, self.kwargs["slug"], self.kwargs["pk"]))
