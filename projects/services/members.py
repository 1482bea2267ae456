"""Who works on a project: members and invitations."""

from __future__ import annotations

import datetime as dt
import logging
import secrets

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.mail import send_mail
from django.core.validators import validate_email
from django.db import IntegrityError, transaction
from django.utils import timezone
from django.utils.crypto import salted_hmac

from foundation.errors import StudioError, forbidden, invalid, not_found
from foundation.throttles import INVITATION_FAILURES, INVITATIONS
from projects import audit
from projects.actors import Actor
from projects.choices import Action, Role
from projects.models import Invitation, Membership, Project, User
from projects.scoping import reach

log = logging.getLogger(__name__)
INVITATION_LIFE = dt.timedelta(days=14)
GIVEN_ROLES = (Role.ADMIN, Role.MEMBER, Role.VIEWER)


def digest_of_invitation(secret: str) -> str:
    return salted_hmac("projects.invitation", secret, algorithm="sha256").hexdigest()


def invitation_path(secret: str) -> str:
    return f"/invitations/{secret}/"


def _given(role: str) -> str:
    if role == Role.OWNER:
        raise invalid(
            "role", "A project has one owner; the owner hands it over by changing a member's role to owner."
        )
    if role not in GIVEN_ROLES:
        raise invalid("role", f"A role is one of {', '.join(GIVEN_ROLES)}.")
    return role


def add_member(
    *, actor: Actor, project: Project, email: str, role: str, base_url: str = ""
) -> Membership | tuple[Invitation, str]:
    """Give the person with this e-mail a role; who has no account yet is invited by mail.

    Needs ADMIN. Answers the membership, or the invitation with its secret (once). `base_url` (as
    `https://host`) begins the link in the mail unless the settings name a public address.
    Raises StudioError 400 for e-mail and role, 409 when they are in the project already.
    """
    row: Project = reach(Project.objects.all(), actor, Action.ADMIN, "project", pk=project.pk)
    role, email = _given(role), email.strip().lower()
    try:
        validate_email(email)
    except ValidationError:
        raise invalid("email", "This is not an e-mail address: name@example.org would be one.") from None
    INVITATIONS.count(actor.key)
    user = User.objects.filter(email__iexact=email, is_active=True).first()
    if user is None:
        return _invite(actor, row, email, role, settings.PUBLIC_URL or base_url)
    try:
        with transaction.atomic():
            member = Membership.objects.create(project=row, user=user, role=role)
            audit.record(actor, "member.add", project_id=row.pk, target=user.username, role=role)
    except IntegrityError:
        raise StudioError(
            "already_member", f"{email} is in this project already: change their role instead.", 409
        ) from None
    return member


def _invite(actor: Actor, project: Project, email: str, role: str, base_url: str) -> tuple[Invitation, str]:
    secret = secrets.token_urlsafe(32)
    with transaction.atomic():
        # a second invitation replaces the first, whose link may be lost
        Invitation.objects.filter(project=project, email=email, accepted_at=None).delete()
        invitation = Invitation.objects.create(
            project=project,
            email=email,
            role=role,
            digest=digest_of_invitation(secret),
            invited_by=actor.user,
            expires_at=timezone.now() + INVITATION_LIFE,
        )
        audit.record(actor, "member.invite", project_id=project.pk, target=email, role=role)
        link = f"{base_url.rstrip('/')}{invitation_path(secret)}"
        transaction.on_commit(lambda: _mail(email, project.name, link), robust=True)
    return invitation, secret


def _mail(email: str, project: str, link: str) -> None:
    try:
        send_mail(
            f"You are invited to {project}".replace("\n", " ").replace("\r", " "),
            f"You are invited to the project {project} on Studio.\n\nLog in or sign up, then open\n\n  {link}\n\n"
            f"The link works once, for {INVITATION_LIFE.days} days.\n",
            None,
            [email],
        )
    except OSError as error:  # the inviter has the link too
        log.warning("mail.lost kind=invitation error=%s", type(error).__name__)


def withdraw_invitation(*, actor: Actor, invitation: Invitation) -> None:
    row: Invitation = reach(Invitation.objects.all(), actor, Action.ADMIN, "invitation", pk=invitation.pk)
    with transaction.atomic():
        row.delete()
        audit.record(actor, "member.uninvite", project_id=row.project_id, target=row.email)


def accept_invitation(*, actor: Actor, secret: str) -> Membership:
    """The person joins the project with the role of the invitation; the link works once.

    Raises StudioError 403 when no person asks, 404 for an unknown link, 410 for a used or old one, 409 for a member.
    """
    if actor.user is None or actor.project_id is not None or Action.RUN not in actor.actions:
        raise forbidden("Log in to accept an invitation.")
    INVITATION_FAILURES.check(actor.key)
    invitation = (
        Invitation.objects.select_related("project").filter(digest=digest_of_invitation(secret)).first()
    )
    if invitation is None:
        INVITATION_FAILURES.count(actor.key)
        raise not_found("invitation")
    if invitation.accepted_at is not None:
        raise StudioError("invitation_used", "This invitation was accepted before: ask for a new one.", 410)
    if invitation.expires_at <= timezone.now():
        raise StudioError("invitation_expired", "This invitation is too old: ask for a new one.", 410)
    try:
        with transaction.atomic():
            # of two clicks at once, one takes it
            if not Invitation.objects.filter(pk=invitation.pk, accepted_at=None).update(
                accepted_at=timezone.now()
            ):
                raise StudioError(
                    "invitation_used", "This invitation was accepted before: ask for a new one.", 410
                )
            member = Membership.objects.create(
                project=invitation.project, user=actor.user, role=invitation.role
            )
            audit.record(actor, "member.join", project_id=invitation.project_id, target=actor.user.username)
    except IntegrityError:
        raise StudioError("already_member", "You are in this project already.", 409) from None
    return member


def change_role(*, actor: Actor, membership: Membership, role: str) -> Membership:
    """Give a member another role; needs ADMIN.

    `owner` hands the project over: that needs OWN, and makes the actor an admin.
    Nobody changes their own role. Raises StudioError 400, 403, 404, 409.
    """
    row: Membership = reach(Membership.objects.all(), actor, Action.ADMIN, "member", pk=membership.pk)
    if actor.user is not None and row.user_id == actor.user.pk:
        raise forbidden("Nobody changes their own role: ask another admin, or leave the project.")
    if role == Role.OWNER:
        reach(Membership.objects.all(), actor, Action.OWN, "member", pk=row.pk)
        return _hand_over(actor, row)
    role = _given(role)
    with transaction.atomic():
        row = Membership.objects.select_for_update().get(pk=row.pk)
        if row.role == Role.OWNER:
            raise forbidden("The owner stays owner until they hand the project over themselves.")
        row.role = role
        row.save(update_fields=["role"])
        audit.record(actor, "member.role", project_id=row.project_id, target=str(row.user_id), role=role)
    return row


def _hand_over(actor: Actor, row: Membership) -> Membership:
    with transaction.atomic():
        moved = Membership.objects.filter(project_id=row.project_id, user=actor.user, role=Role.OWNER).update(
            role=Role.ADMIN
        )
        if not moved:
            raise forbidden("Only the owner hands a project over.")
        if not Membership.objects.filter(pk=row.pk).update(role=Role.OWNER):
            raise not_found("member")
        audit.record(actor, "project.hand_over", project_id=row.project_id, target=str(row.user_id))
    row.refresh_from_db()
    return row


def remove_member(*, actor: Actor, membership: Membership) -> None:
    """Take somebody out of a project (needs ADMIN), or leave it oneself. The owner stays."""
    row: Membership = reach(Membership.objects.all(), actor, Action.VIEW, "member", pk=membership.pk)
    leaving = actor.user is not None and row.user_id == actor.user.pk and Action.RUN in actor.actions
    if not leaving:
        row = reach(Membership.objects.all(), actor, Action.ADMIN, "member", pk=row.pk)
    with transaction.atomic():
        row = Membership.objects.select_for_update().get(pk=row.pk)
        if row.role == Role.OWNER:
            raise StudioError(
                "owner_stays", "The owner cannot leave: hand the project over first, or delete it.", 409
            )
        row.delete()
        verb = "member.leave" if leaving else "member.remove"
        audit.record(actor, verb, project_id=row.project_id, target=str(row.user_id))
