"""Compute packages: uploaded by people, fetched by devices."""

from __future__ import annotations

from django.http import HttpRequest, JsonResponse
from django.http.response import HttpResponseBase

from federation.dialects.controller.asked import as_uuid, fields_of, truth
from federation.dialects.controller.callers import Caller
from federation.dialects.controller.nouns.packages import PACKAGES, storage_name
from federation.dialects.controller.uploads import sent_file
from federation.dialects.controller.view import ControllerView, answer
from federation.dialects.controller.views.lists import Many
from federation.models.choices import PackageForm
from federation.models.downloads import send_package
from federation.models.models import ComputePackage
from federation.models.selectors import active_package, package_named
from federation.models.services import bring_package, set_active_package
from federation.sessions.commands import restart_clients
from foundation.errors import StudioError, invalid
from projects.choices import Action


def package_for(caller: Caller, name: str | None = None) -> ComputePackage | None:
    """What this caller is given: a named package, else the active one in a form that it can start."""
    if name:
        return package_named(caller.project, name) if "\x00" not in name else None
    forms = (PackageForm.IMPORTER, PackageForm.COMMAND) if caller.is_ticket else (PackageForm.COMMAND,)
    for form in forms:
        if (found := active_package(caller.project, form)) is not None:
            return found
    return None if caller.is_device else active_package(caller.project)


def _readable(caller: Caller) -> None:
    if not caller.is_device and not caller.may(Action.VIEW):
        raise StudioError("wrong_token", "This token does not open this project's packages.", 401)


class Packages(Many):
    noun = PACKAGES

    def post(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        """A package comes up and is the active one from now on; clients may be told to start again with it."""
        given = fields_of(request)
        with sent_file(request, caller, given) as file:
            name = str(given.get("name") or (file.name if file is not None else "") or "package")
            bring_package(
                actor=caller.actor,
                project=caller.project,
                name=name,
                description=str(given.get("description") or ""),
                helper=str(given.get("helper") or ""),
                upload=file,
            )
        if truth(given.get("restart_clients")):
            abort = truth(given.get("abort_ongoing_tasks"))
            restart_clients(actor=caller.actor, project=caller.project, abort_ongoing=abort)
        return answer({"message": "Package uploaded"})


class ActivePackage(ControllerView):
    def get(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        found = active_package(caller.project)
        if found is None or not caller.may(Action.VIEW):
            raise StudioError("not_found", "Entity not found", 404)
        return answer(PACKAGES.shaped(caller, [found])[0])

    def put(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        given = fields_of(request)
        wanted = given.get("package_id") or given.get("id")
        if as_uuid(wanted) is None:
            raise invalid("package_id", "Name the package that is to be active: package_id.")
        set_active_package(actor=caller.actor, package=PACKAGES.row(caller, str(wanted)))
        return answer({"message": "Active package set"})


class DownloadPackage(ControllerView):
    for_devices = True

    def get(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        """The archive, under a name that no other has and that ends like what it is."""
        _readable(caller)
        found = package_for(caller, request.GET.get("name"))
        if found is None:
            raise StudioError("not_found", "No active package", 404)
        return send_package(request, found, file_name=storage_name(found))


class PackageChecksum(ControllerView):
    for_devices = True

    def get(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        _readable(caller)
        name = request.GET.get("name")
        found = package_for(caller, name)
        if found is None:
            message = "File not found." if name else "No compute package uploaded"
            return JsonResponse({"message": message, "checksum": None}, status=404)
        return answer({"message": "Checksum created.", "checksum": found.sha256})
