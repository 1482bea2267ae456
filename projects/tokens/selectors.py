"""Reading tokens: whose, and which are dead."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from django.conf import settings
from django.db.models import Q, QuerySet
from django.db.models.functions import Now

from projects.actors import Actor
from projects.choices import Action
from projects.models import Project
from projects.tokens.choices import TokenKind
from projects.tokens.models import Token


def tokens_of(actor: Actor) -> QuerySet[Token]:
    """The actor's own tokens, and those of the projects that they administer; newest first."""
    mine = Q(pk__in=[])
    if actor.user is not None and actor.project_id is None and Action.VIEW in actor.actions:
        mine = Q(kind=TokenKind.USER, user=actor.user)
    administered = Project.objects.visible_to(actor, Action.ADMIN)
    shared = Q(kind__in=[TokenKind.PROJECT, TokenKind.ENROLMENT, TokenKind.CLIENT], project__in=administered)
    return (
        Token.objects.filter(mine | shared).select_related("project", "client", "created_by").order_by("-id")
    )


def own_tokens(actor: Actor) -> QuerySet[Token]:
    """The person's own tokens, newest first; revoked ones too."""
    return tokens_of(actor).filter(kind=TokenKind.USER)


def project_tokens(actor: Actor, project: Project) -> QuerySet[Token]:
    """Project and enrolment tokens of a project that the actor administers, newest first."""
    return tokens_of(actor).filter(project=project, kind__in=[TokenKind.PROJECT, TokenKind.ENROLMENT])


def dead_tokens(token_ids: Iterable[uuid.UUID]) -> set[uuid.UUID]:
    """Those of `token_ids` that no longer work: revoked, expired, deleted, of a closed account or a removed pepper."""
    asked = set(token_ids)
    if not asked:
        return set()
    alive = Token.objects.filter(
        Q(expires_at=None) | Q(expires_at__gt=Now()),
        Q(user=None) | Q(user__is_active=True),
        pk__in=asked,
        revoked_at=None,
        pepper__in=list(settings.TOKEN_PEPPERS),
    )
    return asked - set(alive.values_list("pk", flat=True))
