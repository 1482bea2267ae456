"""Who may have an account, and under which name: the rules that pages and scripts share."""

from __future__ import annotations

from allauth.account.adapter import DefaultAccountAdapter
from django.conf import settings
from django.core.validators import RegexValidator
from django.http import HttpRequest

# Plain letters only: no two names look alike, upper and lower case match in every database,
# and no name can be mistaken for somebody's e-mail.
USERNAME_VALIDATORS = [
    RegexValidator(
        r"^[A-Za-z0-9._+-]+\Z", "A user name is made of letters a to z, digits, and the signs . _ + - only."
    )
]


class AccountAdapter(DefaultAccountAdapter):
    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return bool(settings.SIGNUP_OPEN)
