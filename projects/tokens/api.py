"""REST: who am I, log-in for the command line, and tokens."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.conf import settings
from django.db.models import QuerySet
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.generics import GenericAPIView
from rest_framework.permissions import AllowAny, IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response

from foundation.errors import not_found
from foundation.idempotency import idempotent
from foundation.throttles import address_of
from projects.actors import Actor, actor_of
from projects.api import ListAndMake, body
from projects.choices import Action
from projects.selectors import project_by_slug
from projects.serializers import AccountOut
from projects.services import log_in
from projects.tokens import selectors, services
from projects.tokens.choices import MADE_BY_PEOPLE, Scope, TokenKind
from projects.tokens.models import Token


class LoginIn(serializers.Serializer[Any]):
    login = serializers.CharField(max_length=254, help_text="user name or e-mail")
    password = serializers.CharField(max_length=4096, trim_whitespace=False, write_only=True)
    name = serializers.CharField(max_length=120, default="command line")


class LoginOut(serializers.Serializer[Any]):
    token = serializers.CharField()
    expires_at = serializers.DateTimeField()


class TokenOut(serializers.ModelSerializer[Token]):
    project = serializers.SlugField(source="project.slug", default=None)
    scopes = serializers.ListField(child=serializers.ChoiceField(choices=Scope.choices))

    class Meta:
        model = Token
        fields = [
            "id",
            "kind",
            "name",
            "key_id",
            "scopes",
            "project",
            "client",
            "created_at",
            "expires_at",
            "last_used_at",
            "revoked_at",
        ]


class TokenMadeOut(TokenOut):
    token = serializers.CharField(help_text="the secret; shown this once")

    class Meta(TokenOut.Meta):
        fields = [*TokenOut.Meta.fields, "token"]


class TokenIn(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=120)
    kind = serializers.ChoiceField(choices=MADE_BY_PEOPLE, default=TokenKind.USER)
    project = serializers.SlugField(
        max_length=80, required=False, allow_null=True, help_text="for a project or an enrolment token"
    )
    scopes = serializers.ListField(
        child=serializers.ChoiceField(choices=Scope.choices), default=lambda: [Scope.READ, Scope.WRITE]
    )
    expires_at = serializers.DateTimeField(required=False, allow_null=True)


class MeTokenOut(serializers.Serializer[Any]):
    kind = serializers.ChoiceField(choices=TokenKind.choices)
    name = serializers.CharField()
    expires_at = serializers.DateTimeField(allow_null=True)


class MeOut(serializers.Serializer[Any]):
    user = AccountOut(allow_null=True)
    token = MeTokenOut(allow_null=True, help_text="empty when a session cookie is used")
    project = serializers.SlugField(allow_null=True, help_text="the only one that this token reaches")
    client = serializers.UUIDField(allow_null=True)


@extend_schema(tags=["accounts"])
class Me(GenericAPIView[Token]):
    permission_classes = [IsAuthenticated]
    serializer_class = MeOut
    queryset = Token.objects.none()

    @extend_schema(operation_id="me")
    def get(self, request: Request) -> Response:
        """Who am I, by which token?"""
        token = request.auth if isinstance(request.auth, Token) else None
        actor = actor_of(request)
        about = {
            "user": actor.user,
            "token": token,
            "project": token.project.slug if token is not None and token.project is not None else None,
            "client": actor.client_id,
        }
        return Response(MeOut(about).data)


@extend_schema(tags=["accounts"])
class LogIn(GenericAPIView[Token]):
    permission_classes = [AllowAny]
    # a stale token or cookie sent along must not stand in the way of a fresh log-in
    authentication_classes = []
    serializer_class = LoginIn
    queryset = Token.objects.none()

    @extend_schema(operation_id="auth_token", auth=[], responses={201: LoginOut})
    @idempotent
    def post(self, request: Request) -> Response:
        """A token for the command line, by user name or e-mail and password."""
        given = body(LoginIn, request)
        user = log_in(login=given["login"], password=given["password"], address=address_of(request))
        token, secret = services.create_token(
            actor=Actor.of_user(user),
            kind=TokenKind.USER,
            name=given["name"],
            scopes=(Scope.READ, Scope.WRITE, Scope.ADMIN),
            expires_at=timezone.now() + dt.timedelta(days=settings.LOGIN_TOKEN_DAYS),
        )
        answer = LoginOut({"token": secret, "expires_at": token.expires_at})
        return Response(answer.data, status=status.HTTP_201_CREATED)


def _made(made: tuple[Token, str]) -> Response:
    token, secret = made
    token.token = secret  # type: ignore[attr-defined]  # for this one answer
    return Response(TokenMadeOut(token).data, status=status.HTTP_201_CREATED)


@extend_schema(tags=["tokens"])
class Tokens(ListAndMake[Token]):
    takes = TokenIn
    serializer_class = TokenOut
    queryset = Token.objects.none()
    filterset_fields = {"kind": ["exact"], "project__slug": ["exact"], "revoked_at": ["isnull"]}

    def get_queryset(self) -> QuerySet[Token]:
        """Your own, and those of the projects that you administer."""
        return selectors.tokens_of(actor_of(self.request))

    @extend_schema(operation_id="tokens_create", request=TokenIn, responses={201: TokenMadeOut})
    @idempotent
    def post(self, request: Request) -> Response:
        """A new token. Its secret is in this answer only."""
        actor = actor_of(request)
        given = body(TokenIn, request)
        slug = given.pop("project", None)
        project = project_by_slug(actor, slug, Action.ADMIN) if slug else None
        return _made(services.create_token(actor=actor, project=project, **given))


class _OneOf(GenericAPIView[Token]):
    serializer_class = TokenOut
    queryset = Token.objects.none()

    def _row(self, request: Request, pk: Any) -> Token:
        row = selectors.tokens_of(actor_of(request)).filter(pk=pk).first()
        if row is None:
            raise not_found("token")
        return row


@extend_schema(tags=["tokens"])
class OneToken(_OneOf):
    @extend_schema(operation_id="tokens_retrieve")
    def get(self, request: Request, pk: Any) -> Response:
        return Response(TokenOut(self._row(request, pk)).data)

    @extend_schema(operation_id="tokens_revoke", responses={204: None})
    def delete(self, request: Request, pk: Any) -> Response:
        """Revoke it: it stops working at once. Its row stays to be seen."""
        services.revoke_token(actor=actor_of(request), token=self._row(request, pk))
        return Response(status=status.HTTP_204_NO_CONTENT)


@extend_schema(tags=["tokens"])
class RotateToken(_OneOf):
    @extend_schema(operation_id="tokens_rotate", request=None, responses={201: TokenMadeOut})
    @idempotent
    def post(self, request: Request, pk: Any) -> Response:
        """A new token of the same rights; the old one is revoked."""
        return _made(services.rotate_token(actor=actor_of(request), token=self._row(request, pk)))
