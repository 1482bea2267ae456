"""What can be done with people and projects."""

from projects.services.accounts import log_in, sign_up
from projects.services.members import (
    accept_invitation,
    add_member,
    change_role,
    invitation_path,
    remove_member,
    withdraw_invitation,
)
from projects.services.projects import (
    create_project,
    delete_project,
    remove_artifacts,
    update_project,
)

__all__ = [
    "accept_invitation",
    "add_member",
    "change_role",
    "create_project",
    "delete_project",
    "invitation_path",
    "log_in",
    "remove_artifacts",
    "remove_member",
    "sign_up",
    "update_project",
    "withdraw_invitation",
]
