from django.db import models

from projects.choices import Action


class TokenKind(models.TextChoices):
    USER = "user"  # acts for a person, in all their projects
    PROJECT = "project"  # acts for one project
    CLIENT = "client"  # one client: connects to the controller and the combiner
    ENROLMENT = "enrolment"  # lets a device register itself as a client of one project


# the others are made together with what they are for
MADE_BY_PEOPLE = [
    (kind.value, kind.label) for kind in (TokenKind.USER, TokenKind.PROJECT, TokenKind.ENROLMENT)
]


class Scope(models.TextChoices):
    READ = "read"
    WRITE = "write"  # includes read
    ADMIN = "admin"  # includes write


ACTIONS_OF_SCOPE: dict[str, frozenset[Action]] = {
    Scope.READ: frozenset({Action.VIEW}),
    Scope.WRITE: frozenset({Action.VIEW, Action.RUN}),
    Scope.ADMIN: frozenset(Action),
}
