"""REST: accounts, projects, members, invitations."""

from __future__ import annotations

from typing import Any, TypeVar

from django.db.models import Model, QuerySet
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import status
from rest_framework.generics import GenericAPIView, ListAPIView
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer

from foundation.idempotency import idempotent
from foundation.throttles import SIGN_UPS, address_of
from projects import selectors, services
from projects.actors import actor_of
from projects.choices import Action
from projects.models import Invitation, Membership, Project
from projects.scoping import reach
from projects.serializers import (
    AccountIn,
    AccountOut,
    AddedOut,
    ConfirmIn,
    InvitationOut,
    JoinedOut,
    MemberIn,
    MemberOut,
    ProjectChange,
    ProjectIn,
    ProjectOut,
    RoleIn,
    SecretIn,
)

M = TypeVar("M", bound=Model)


def body(serializer: type[Any], request: Request) -> dict[str, Any]:
    """What was sent, checked; raises DRF's ValidationError."""
    given = serializer(data=request.data)
    given.is_valid(raise_exception=True)
    return dict(given.validated_data)


class ListAndMake(ListAPIView[M]):
    """A list that also takes a POST of another shape; the browsable page's form asks for `takes`."""

    takes: type[BaseSerializer[Any]]

    def get_serializer_class(self) -> type[BaseSerializer[Any]]:
        return (
            self.takes if self.request and self.request.method == "POST" else super().get_serializer_class()
        )


@extend_schema(tags=["accounts"])
class Accounts(GenericAPIView[Any]):
    permission_classes = [AllowAny]
    serializer_class = AccountIn
    queryset = Project.objects.none()

    @extend_schema(operation_id="accounts_create", auth=[], responses={201: AccountOut})
    @idempotent
    def post(self, request: Request) -> Response:
        """Sign up."""
        SIGN_UPS.count(address_of(request))
        user = services.sign_up(**body(AccountIn, request))
        return Response(AccountOut(user).data, status=status.HTTP_201_CREATED)


@extend_schema(tags=["projects"])
class Projects(ListAndMake[Project]):
    takes = ProjectIn
    serializer_class = ProjectOut
    queryset = Project.objects.none()
    filterset_fields = {"name": ["exact", "icontains"], "template": ["exact"]}

    def get_queryset(self) -> QuerySet[Project]:
        return selectors.projects_of(actor_of(self.request))

    @extend_schema(operation_id="projects_create", request=ProjectIn, responses={201: ProjectOut})
    @idempotent
    def post(self, request: Request) -> Response:
        """Create a project; you become its owner."""
        actor = actor_of(request)
        made = services.create_project(actor=actor, **body(ProjectIn, request))
        row = selectors.project_by_slug(actor, made.slug)
        return Response(ProjectOut(row).data, status=status.HTTP_201_CREATED)


@extend_schema(tags=["projects"])
class OneProject(GenericAPIView[Project]):
    serializer_class = ProjectOut
    queryset = Project.objects.none()
    lookup_field = "slug"

    @extend_schema(operation_id="projects_retrieve")
    def get(self, request: Request, slug: str) -> Response:
        return Response(ProjectOut(selectors.project_by_slug(actor_of(request), slug)).data)

    @extend_schema(operation_id="projects_update", request=ProjectChange)
    def patch(self, request: Request, slug: str) -> Response:
        actor = actor_of(request)
        row = selectors.project_by_slug(actor, slug, Action.ADMIN)
        services.update_project(actor=actor, project=row, **body(ProjectChange, request))
        return Response(ProjectOut(selectors.project_by_slug(actor, slug)).data)

    @extend_schema(
        operation_id="projects_delete",
        request=None,
        parameters=[OpenApiParameter("confirm", str, description="the project's exact name")],
        responses={204: None},
    )
    def delete(self, request: Request, slug: str) -> Response:
        """Delete the project with everything in it. Needs its exact name as `confirm`, in the body or the address."""
        actor = actor_of(request)
        row = selectors.project_by_slug(actor, slug, Action.OWN)
        confirm = request.query_params.get("confirm") or body(ConfirmIn, request)["confirm"]
        services.delete_project(actor=actor, project=row, confirm=confirm)
        return Response(status=status.HTTP_204_NO_CONTENT)


@extend_schema(tags=["members"])
class Members(ListAndMake[Membership]):
    takes = MemberIn
    serializer_class = MemberOut
    queryset = Membership.objects.none()
    filterset_fields = ["role"]
    keyset_ordering = "id"

    def get_queryset(self) -> QuerySet[Membership]:
        actor = actor_of(self.request)
        return selectors.members_of(actor, selectors.project_by_slug(actor, self.kwargs["slug"]))

    @extend_schema(operation_id="members_add", request=MemberIn, responses={201: AddedOut})
    @idempotent
    def post(self, request: Request, slug: str) -> Response:
        """Add somebody by e-mail; who has no account yet is invited."""
        actor = actor_of(request)
        row = selectors.project_by_slug(actor, slug, Action.ADMIN)
        added = services.add_member(
            actor=actor, project=row, base_url=request.build_absolute_uri("/"), **body(MemberIn, request)
        )
        if isinstance(added, Membership):
            answer: dict[str, Any] = {"member": added, "invitation": None, "link": None}
        else:
            invitation, secret = added
            link = request.build_absolute_uri(services.invitation_path(secret))
            answer = {"member": None, "invitation": invitation, "link": link}
        return Response(AddedOut(answer).data, status=status.HTTP_201_CREATED)


@extend_schema(tags=["members"])
class OneMember(GenericAPIView[Membership]):
    serializer_class = MemberOut
    queryset = Membership.objects.none()

    def _row(self, request: Request, slug: str, pk: int) -> Membership:
        actor = actor_of(request)
        project = selectors.project_by_slug(actor, slug)
        row: Membership = reach(
            Membership.objects.select_related("user"), actor, Action.VIEW, "member", project=project, pk=pk
        )
        return row

    @extend_schema(operation_id="members_retrieve")
    def get(self, request: Request, slug: str, pk: int) -> Response:
        return Response(MemberOut(self._row(request, slug, pk)).data)

    @extend_schema(operation_id="members_update", request=RoleIn)
    def patch(self, request: Request, slug: str, pk: int) -> Response:
        """Change a role; `owner` hands the project over."""
        row = self._row(request, slug, pk)
        services.change_role(actor=actor_of(request), membership=row, **body(RoleIn, request))
        return Response(MemberOut(self._row(request, slug, pk)).data)

    @extend_schema(operation_id="members_remove", responses={204: None})
    def delete(self, request: Request, slug: str, pk: int) -> Response:
        """Take somebody out, or leave."""
        services.remove_member(actor=actor_of(request), membership=self._row(request, slug, pk))
        return Response(status=status.HTTP_204_NO_CONTENT)


@extend_schema(tags=["members"])
class Invitations(ListAPIView[Invitation]):
    serializer_class = InvitationOut
    queryset = Invitation.objects.none()
    filterset_fields = {"role": ["exact"], "accepted_at": ["isnull"]}

    def get_queryset(self) -> QuerySet[Invitation]:
        actor = actor_of(self.request)
        return selectors.invitations_of(
            actor, selectors.project_by_slug(actor, self.kwargs["slug"], Action.ADMIN)
        )


@extend_schema(tags=["members"])
class OneInvitation(GenericAPIView[Invitation]):
    serializer_class = InvitationOut
    queryset = Invitation.objects.none()

    def _row(self, request: Request, slug: str, pk: Any) -> Invitation:
        actor = actor_of(request)
        project = selectors.project_by_slug(actor, slug, Action.ADMIN)
        row: Invitation = reach(
            Invitation.objects.select_related("invited_by"),
            actor,
            Action.ADMIN,
            "invitation",
            project=project,
            pk=pk,
        )
        return row

    @extend_schema(operation_id="invitations_retrieve")
    def get(self, request: Request, slug: str, pk: Any) -> Response:
        return Response(InvitationOut(self._row(request, slug, pk)).data)

    @extend_schema(operation_id="invitations_withdraw", responses={204: None})
    def delete(self, request: Request, slug: str, pk: Any) -> Response:
        services.withdraw_invitation(actor=actor_of(request), invitation=self._row(request, slug, pk))
        return Response(status=status.HTTP_204_NO_CONTENT)


@extend_schema(tags=["members"])
class AcceptInvitation(GenericAPIView[Invitation]):
    serializer_class = SecretIn
    queryset = Invitation.objects.none()

    @extend_schema(operation_id="invitations_accept", responses={200: JoinedOut})
    def post(self, request: Request) -> Response:
        """Join the project of an invitation."""
        row = services.accept_invitation(actor=actor_of(request), **body(SecretIn, request))
        return Response(JoinedOut({"project": row.project.slug, "role": row.role}).data)
