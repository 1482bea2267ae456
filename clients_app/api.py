"""REST: clients, their configs, combiners, and what a client asks about itself."""

from __future__ import annotations

from typing import Any

import django_filters
from django.conf import settings
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import status
from rest_framework.generics import GenericAPIView, ListAPIView
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response

from clients_app import placement, selectors, services
from clients_app.combiner_states import combiner_states
from clients_app.config import ClientConfig
from clients_app.models import Client, Combiner
from clients_app.serializers import (
    ClientChange,
    ClientIn,
    ClientMadeOut,
    ClientOut,
    ClientSelfOut,
    CombinerOut,
    DrainingOut,
)
from foundation.errors import forbidden, not_found
from foundation.idempotency import idempotent
from projects.actors import Actor, actor_of
from projects.api import body
from projects.choices import Action
from projects.models import Project
from projects.selectors import project_by_slug
from projects.tokens.models import Token


class ClientFilter(django_filters.FilterSet):
    online = django_filters.BooleanFilter()
    name = django_filters.CharFilter()
    name__icontains = django_filters.CharFilter(field_name="name", lookup_expr="icontains")

    class Meta:
        model = Client
        fields = ["dialect"]


def _made(made: tuple[Client, ClientConfig, str]) -> Response:
    client, config, _secret = made
    row = selectors.client_itself(client.pk)
    if row is None:
        raise not_found("client")
    state = ClientOut(selectors.described([row])[0]).data
    answer = {**state, "config": config.as_dict(), "config_yaml": config.to_yaml()}
    return Response(answer, status=status.HTTP_201_CREATED)


def _base_url(request: Request) -> str:
    return request.build_absolute_uri("/")


@extend_schema(tags=["clients"])
class Clients(ListAPIView[Client]):
    serializer_class = ClientOut
    queryset = Client.objects.none()
    filterset_class = ClientFilter

    def get_queryset(self) -> QuerySet[Client]:
        actor = actor_of(self.request)
        return selectors.clients_of(actor, project_by_slug(actor, self.kwargs["slug"]))

    def paginate_queryset(self, queryset: Any) -> Any:
        page = super().paginate_queryset(queryset)
        return None if page is None else selectors.described(list(page))

    @extend_schema(operation_id="clients_create", request=ClientIn, responses={201: ClientMadeOut})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Register a client. Its config holds a token that is shown in this answer only."""
        actor = actor_of(request)
        project = project_by_slug(actor, slug, Action.RUN)
        given = body(ClientIn, request)
        return _made(
            services.register_client(actor=actor, project=project, base_url=_base_url(request), **given)
        )


class _OneOf(GenericAPIView[Client]):
    serializer_class = ClientOut
    queryset = Client.objects.none()

    def _row(self, request: Request, slug: str, pk: Any) -> Client:
        actor = actor_of(request)
        row = selectors.clients_of(actor, project_by_slug(actor, slug)).filter(pk=pk).first()
        if row is None:
            raise not_found("client")
        return row


@extend_schema(tags=["clients"])
class OneClient(_OneOf):
    @extend_schema(operation_id="clients_retrieve")
    def get(self, request: Request, slug: str, pk: Any) -> Response:
        return Response(ClientOut(selectors.described([self._row(request, slug, pk)])[0]).data)

    @extend_schema(operation_id="clients_change", request=ClientChange)
    def patch(self, request: Request, slug: str, pk: Any) -> Response:
        """Rename it, or pin it to combiners by their labels."""
        services.change_client(
            actor=actor_of(request), client=self._row(request, slug, pk), **body(ClientChange, request)
        )
        return self.get(request, slug, pk)

    @extend_schema(operation_id="clients_delete", responses={204: None})
    def delete(self, request: Request, slug: str, pk: Any) -> Response:
        """Delete it: its tokens stop working and its streams close. Models and metrics stay."""
        services.delete_client(actor=actor_of(request), client=self._row(request, slug, pk))
        return Response(status=status.HTTP_204_NO_CONTENT)


@extend_schema(tags=["clients"])
class NewConfig(_OneOf):
    @extend_schema(operation_id="clients_config", request=None, responses={201: ClientMadeOut})
    @idempotent
    def post(self, request: Request, slug: str, pk: Any) -> Response:
        """A fresh config with a fresh token; every earlier token of the client is revoked."""
        row = self._row(request, slug, pk)
        return _made(services.new_config(actor=actor_of(request), client=row, base_url=_base_url(request)))


@extend_schema(tags=["combiners"])
class Combiners(ListAPIView[Combiner]):
    serializer_class = CombinerOut
    queryset = Combiner.objects.none()
    keyset_ordering = "name"
    filterset_fields = ["name"]

    def get_queryset(self) -> QuerySet[Combiner]:
        """The combiners that clients of this project may meet: how many of its own each holds, how busy it is, and
        its part of the open rounds."""
        return selectors.combiners_of(self._project())

    def paginate_queryset(self, queryset: Any) -> Any:
        page = super().paginate_queryset(queryset)
        return None if page is None else combiner_states(self._project(), list(page))

    def _project(self) -> Project:
        return project_by_slug(actor_of(self.request), self.kwargs["slug"])


class _OfOperator(GenericAPIView[Combiner]):
    serializer_class = DrainingOut
    queryset = Combiner.objects.none()

    def _operator(self, request: Request) -> Actor:
        actor = actor_of(request)
        services.check_operator(actor)
        return actor

    def _answer(self, name: str) -> Response:
        return Response(DrainingOut(placement.draining_of(name)).data)


@extend_schema(tags=["combiners"])
class OneCombiner(_OfOperator):
    @extend_schema(operation_id="combiners_draining")
    def get(self, request: Request, name: str) -> Response:
        """For operators: whether it is being drained, and what it still has."""
        self._operator(request)
        return self._answer(name)


@extend_schema(tags=["combiners"])
class Drain(_OfOperator):
    @extend_schema(operation_id="combiners_drain", request=None)
    def post(self, request: Request, name: str) -> Response:
        """For operators: it takes no new clients, gives its own to others and finishes what it accepted. It may be
        stopped once `drained` is true: ask until then. Holds over restarts until it is resumed."""
        services.drain_combiner(name, actor=self._operator(request))
        return self._answer(name)


@extend_schema(tags=["combiners"])
class Resume(_OfOperator):
    @extend_schema(operation_id="combiners_resume", request=None)
    def post(self, request: Request, name: str) -> Response:
        """For operators: it takes clients again."""
        services.undrain_combiner(name, actor=self._operator(request))
        return self._answer(name)


@extend_schema(tags=["clients"])
class ClientSelf(GenericAPIView[Client]):
    permission_classes = [IsAuthenticated]
    serializer_class = ClientSelfOut
    queryset = Client.objects.none()

    @extend_schema(operation_id="client_self")
    def get(self, request: Request) -> Response:
        """With a client token: who it is, and the combiners to connect to, best first."""
        client_id = actor_of(request).client_id
        if client_id is None:
            raise forbidden("This address is for a client's own token.")
        client = selectors.client_itself(client_id)
        if client is None:
            raise not_found("client")
        answer = {
            "client_id": client.pk,
            "name": client.name,
            "project": client.project.slug,
            "combiners": placement.combiners_for(client),
            "pin": client.pin,
            "server_version": settings.STUDIO_VERSION,
        }
        return Response(ClientSelfOut(answer).data)


@extend_schema(tags=["clients"])
class Enrol(GenericAPIView[Client]):
    permission_classes = [IsAuthenticated]
    serializer_class = ClientIn
    queryset = Client.objects.none()

    @extend_schema(operation_id="client_enrol", responses={201: ClientMadeOut})
    @idempotent
    def post(self, request: Request) -> Response:
        """With an enrolment token: register this device and take its config."""
        if not isinstance(request.auth, Token):
            raise forbidden("Enrolling needs an enrolment token.")
        given = body(ClientIn, request)
        return _made(services.enrol_client(token=request.auth, base_url=_base_url(request), **given))
