"""Accounts for scripts, by the rules of the pages."""

from __future__ import annotations

from allauth.account.models import EmailAddress
from django.conf import settings
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import IntegrityError, transaction

from foundation.errors import StudioError, forbidden
from foundation.throttles import LOGIN_FAILURES, LOGIN_FAILURES_OF_NAME, LOGINS
from projects import audit
from projects.accounts import USERNAME_VALIDATORS
from projects.actors import Actor
from projects.models import User


def sign_up(*, username: str, email: str, password: str) -> User:
    """A new person. Raises StudioError 403 when sign-up is closed, 400 with `errors` by field for what is wrong."""
    if not settings.SIGNUP_OPEN:
        raise forbidden("Sign-up is closed here: ask whoever runs this Studio for an account.")
    user = User(username=username.strip(), email=email.strip().lower())
    errors = _faults(user, password)
    if errors:
        raise StudioError("invalid", next(iter(errors.values()))[0], 400, errors=errors)
    user.set_password(password)
    try:
        with transaction.atomic():
            user.save()
            EmailAddress.objects.create(user=user, email=user.email, primary=True, verified=False)
            audit.record(Actor.of_user(user), "account.create", project_id=None, target=user.username)
    except IntegrityError:  # somebody took the name or the address between the look and the write
        raise StudioError(
            "taken", "This user name or e-mail is taken: choose another, or log in.", 409
        ) from None
    return user


def _faults(user: User, password: str) -> dict[str, list[str]]:
    errors: dict[str, list[str]] = {}
    try:
        User._meta.get_field("username").run_validators(user.username)
        for validator in USERNAME_VALIDATORS:
            validator(user.username)
    except ValidationError as error:
        errors["username"] = error.messages
    try:
        validate_email(user.email)
    except ValidationError as error:
        errors["email"] = error.messages
    if not user.username:
        errors["username"] = ["Choose a user name."]
    elif "username" not in errors and User.objects.filter(username__iexact=user.username).exists():
        errors["username"] = ["This user name is taken: choose another, or log in."]
    if "email" not in errors and User.objects.filter(email__iexact=user.email).exists():
        errors["email"] = ["There is an account with this e-mail: log in, or reset its password."]
    try:
        validate_password(password, user)
    except ValidationError as error:
        errors["password"] = error.messages
    return errors


def log_in(*, login: str, password: str, address: str) -> User:
    """The person whose user name or e-mail is `login`, if that is their password.

    `address` is the caller's IP, for which attempts are counted. Raises StudioError 401, 403 or 429.
    """
    login = login.strip()
    LOGINS.count(address)
    LOGIN_FAILURES.check(address)
    LOGIN_FAILURES_OF_NAME.check(f"{address} {login}")
    by = {"email__iexact": login} if "@" in login else {"username__iexact": login}
    user = User.objects.filter(**by, is_active=True).first()
    if user is None:
        User().set_password(password)  # an unknown login takes as long as a wrong password
    if user is None or not user.check_password(password):
        LOGIN_FAILURES.count(address)
        LOGIN_FAILURES_OF_NAME.count(f"{address} {login}")
        raise StudioError("wrong_login", "There is no account with this login and password.", 401)
    must_confirm = settings.ACCOUNT_EMAIL_VERIFICATION == "mandatory"
    if must_confirm and not EmailAddress.objects.filter(user=user, verified=True).exists():
        raise forbidden("Confirm your e-mail first: log in on the page to have the mail sent again.")
    return user
