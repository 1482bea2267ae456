"""Every kind of caller, and the rules that addresses share."""

from __future__ import annotations

from collections.abc import Mapping

from django.http import HttpResponseBase

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
PEOPLE = ("owner", "admin", "member", "viewer", "stranger")
TOKENS = (
    "read token of the owner",
    "project token",
    "project token of another project",
    "client",
    "client of another project",
    "enrolment token",
    "expired token",
    "revoked token",
)
CALLERS = (*PEOPLE, "nobody", *TOKENS)

OK = "ok"  # let through: done, or refused for what it says rather than for who says it
LOGIN = "login"  # a page sends them to log in
Rule = Mapping[str, int | str]


def api_rule(**other: int | str) -> dict[str, int | str]:
    """Everybody in the project is let through, but for what `other` says (a caller's first word, or all of it)."""
    rule: dict[str, int | str] = {
        **dict.fromkeys(PEOPLE, OK),
        "stranger": 404,
        "nobody": 401,
        "read token of the owner": OK,
        "project token": OK,
        "project token of another project": 404,
        "client": 403,
        "client of another project": 403,
        "enrolment token": 403,
        "expired token": 401,
        "revoked token": 401,
    }
    for who, answer in other.items():
        rule[who.replace("_", " ")] = answer
    return rule


def page_rule(**other: int | str) -> dict[str, int | str]:
    """Pages know people by their cookie; whoever comes with a token only is nobody here."""
    return {**api_rule(), "nobody": LOGIN, **dict.fromkeys(TOKENS, LOGIN), **other}


VIEW = api_rule()
RUN = api_rule(viewer=403, read_token_of_the_owner=403)
ADMIN = api_rule(viewer=403, member=403, read_token_of_the_owner=403)
OWN = api_rule(viewer=403, member=403, admin=403, read_token_of_the_owner=403, project_token=403)
KNOWN = api_rule(stranger=OK, project_token_of_another_project=OK)  # about the caller's own
PERSON = api_rule(
    stranger=OK, read_token_of_the_owner=403, project_token=403, project_token_of_another_project=403
)
ANY_TOKEN = {**KNOWN, "client": OK, "client of another project": OK, "enrolment token": OK}
# nobody here is staff: what operators may is in tests of its own
OPERATORS = api_rule(
    **dict.fromkeys(PEOPLE, 403),
    read_token_of_the_owner=403,
    project_token=403,
    project_token_of_another_project=403,
)
OWNERS_THING = api_rule(**dict.fromkeys(PEOPLE[1:], 404), project_token=404)
PUBLIC: Rule = dict.fromkeys(CALLERS, OK)
PUBLIC_API: Rule = {
    **PUBLIC,
    "expired token": 401,
    "revoked token": 401,
}  # a dead token is told so, whatever is asked
NOWHERE: Rule = dict.fromkeys(CALLERS, 404)

TO_LOGIN: Rule = dict.fromkeys(CALLERS, LOGIN)
PAGE_VIEW = page_rule()
PAGE_RUN = page_rule(viewer=403)
PAGE_ADMIN = page_rule(viewer=403, member=403)
PAGE_OWN = page_rule(viewer=403, member=403, admin=403)
PAGE_PERSON = page_rule(stranger=OK)
PAGE_TOKEN_OF_PROJECT = page_rule(viewer=404, member=404)
PAGE_TOKEN_OF_OWNER = page_rule(**dict.fromkeys(PEOPLE[1:], 404))


def verdict(answer: HttpResponseBase) -> int | str:
    """What an answer means for who asked: let through, sent to log in, or the refusal's status."""
    if answer.status_code == 302 and answer["Location"].startswith("/accounts/login/"):
        return LOGIN
    if answer.status_code < 400 or answer.status_code in (409, 422):
        return OK
    return answer.status_code
