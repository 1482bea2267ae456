"""Roles, and what each may do."""

from __future__ import annotations

import enum

from django.db import models


class Role(models.TextChoices):
    OWNER = "owner"
    ADMIN = "admin"
    MEMBER = "member"
    VIEWER = "viewer"


class Action(enum.StrEnum):
    VIEW = "view"  # read everything in a project
    RUN = "run"  # upload, register clients, start and stop sessions
    ADMIN = "admin"  # settings, members, tokens
    OWN = "own"  # delete the project, hand it over


ACTIONS_OF_ROLE: dict[str, frozenset[Action]] = {
    Role.OWNER: frozenset(Action),
    Role.ADMIN: frozenset({Action.VIEW, Action.RUN, Action.ADMIN}),
    Role.MEMBER: frozenset({Action.VIEW, Action.RUN}),
    Role.VIEWER: frozenset({Action.VIEW}),
}


def roles_that_may(action: Action) -> list[str]:
    return [role for role, actions in ACTIONS_OF_ROLE.items() if action in actions]


class Template(models.TextChoices):
    FEDERATED_LEARNING = "federated-learning", "Federated learning"
