"""Who asks the controller, and in which project."""

from __future__ import annotations

from dataclasses import dataclass

from django.http import HttpRequest

from foundation.errors import StudioError
from foundation.throttles import TOKEN_FAILURES, address_of
from projects.actors import Actor
from projects.choices import Action
from projects.models import Project
from projects.selectors import actions_in, projects_of
from projects.tokens import tickets
from projects.tokens.choices import TokenKind
from projects.tokens.models import Token
from projects.tokens.verify import actor_for, verify

_DEVICES = (TokenKind.CLIENT, TokenKind.ENROLMENT)


@dataclass(frozen=True)
class Caller:
    """A living token and the project it asks for; `is_ticket`: it came as a JWT, as Scaleout's clients send."""

    token: Token
    actor: Actor
    project: Project
    is_ticket: bool

    @property
    def is_device(self) -> bool:
        """A client, or something that is about to register as one: it may join and fetch the package, no more."""
        return self.token.kind in _DEVICES

    def may(self, action: Action) -> bool:
        return action in actions_in(self.actor, self.project)


def token_of(request: HttpRequest) -> tuple[Token, str]:
    """The token in the Authorization header and its secret, whatever the scheme is called. Raises StudioError 401, or
    429 for an address that sends too many wrong ones."""
    secret = request.headers.get("Authorization", "").partition(" ")[2].strip()
    try:
        if not secret:
            raise StudioError("not_authenticated", "Send a token: Authorization: Bearer …", 401)
        return verify(secret), secret
    except StudioError:
        TOKEN_FAILURES.count(address_of(request))
        raise


def caller_of(request: HttpRequest, slug: str | None) -> Caller:
    """Who asks. `slug` is the project that the address names, if it names one; a person's token may name it in the
    header X-Project-Slug instead. Raises StudioError 401 for a token of another project, 404, 400."""
    token, secret = token_of(request)
    actor = actor_for(token)
    named = slug or request.headers.get("X-Project-Slug")
    return Caller(token, actor, _project(token, actor, named), tickets.is_ticket(secret))


def _project(token: Token, actor: Actor, named: str | None) -> Project:
    if token.kind == TokenKind.USER:
        if named is None and token.project_id is None:
            raise StudioError(
                "invalid",
                "This token reaches several projects: name one in the address (/<project>-fedn-reducer/) or in the "
                "header X-Project-Slug, or use a project's token.",
                400,
            )
        rows = projects_of(actor)
        rows = rows.filter(pk=token.project_id) if token.project_id else rows
        mine = (rows.filter(slug=named) if named else rows).first()
        if mine is None:
            raise StudioError("not_found", "There is no such project, or it is not yours to see.", 404)
        return mine
    assert token.project is not None
    if named is not None and named != token.project.slug:
        raise StudioError("wrong_token", "This token belongs to another project.", 401)
    return token.project
