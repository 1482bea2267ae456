"""Choosing how updates become a model, in the dialog of a new session."""

from __future__ import annotations

import re

import pytest
from django.urls import reverse
from playwright.sync_api import Page, expect

from federation.sessions.models import Session
from projects.models import User
from tests.e2e.conftest import Complaints, Enter
from tests.pages_world import World

pytestmark = [pytest.mark.once, pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def dialog(page: Page, world: World) -> None:
    page.goto(reverse("session-new", args=[world.project.slug, "start"]))
    expect(page.get_by_role("dialog")).to_be_visible()


def test_the_arguments_of_an_aggregator_show_when_it_is_chosen_and_go_with_the_session(
    world: World, owner: User, enter: Enter, complaints: Complaints
) -> None:
    page = enter(owner)
    dialog(page, world)
    arguments = page.get_by_role("group", name="Arguments of fedopt")
    expect(arguments).to_be_hidden()
    page.get_by_label("How updates become a model").select_option("fedopt")
    expect(arguments).to_be_visible()
    expect(arguments.get_by_label("Adaptivity (tau)")).to_have_value("0.0001")
    arguments.get_by_label("Server optimiser").select_option("yogi")
    arguments.get_by_label("Server learning rate").fill("0.03")
    arguments.get_by_label("Momentum (beta1)").fill("")
    page.get_by_role("button", name="Start run").click()
    expect(page).to_have_url(re.compile(r"/sessions/[0-9a-f-]{36}/"))
    session = Session.objects.latest("created_at")
    assert session.config["aggregator"] == "fedopt"
    assert session.config["aggregator_kwargs"] == {
        "serveropt": "yogi", "learning_rate": 0.03, "beta1": 0.9, "beta2": 0.99, "tau": 0.0001,
    }  # fmt: skip
    facts = page.get_by_role("region", name="Settings of this session")
    expect(facts).to_contain_text("FedOpt")
    expect(facts).to_contain_text("serveropt yogi")
    expect(facts).to_contain_text("learning_rate 0.03")
    assert complaints == []


def test_an_argument_that_cannot_be_is_shown_at_its_field(
    world: World, owner: User, enter: Enter, complaints: Complaints
) -> None:
    page = enter(owner)
    dialog(page, world)
    page.get_by_label("How updates become a model").select_option("fedopt")
    field = page.get_by_role("group", name="Arguments of fedopt").get_by_label("Momentum (beta1)")
    field.fill("1")
    page.get_by_role("button", name="Start run").click()
    expect(page.get_by_text("Enter a number from 0 to below 1.")).to_be_visible()
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_role("group", name="Arguments of fedopt")).to_be_visible()
    page.get_by_label("How updates become a model").select_option("fedavg")
    page.get_by_role("button", name="Start run").click()
    expect(page).to_have_url(re.compile(r"/sessions/[0-9a-f-]{36}/"))
    assert Session.objects.latest("created_at").config["aggregator_kwargs"] == {}


def test_without_a_script_the_arguments_are_there_and_count_for_the_chosen_aggregator_only(
    world: World, owner: User, enter: Enter
) -> None:
    page = enter(owner, java_script_enabled=False)
    dialog(page, world)
    page.get_by_text("What each aggregator does").click()
    group = page.get_by_role("group", name="Arguments of fedopt")
    group.get_by_label("Server learning rate").fill("-1")
    page.get_by_role("button", name="Start run").click()
    expect(page).to_have_url(re.compile(r"/sessions/[0-9a-f-]{36}/"))
    assert Session.objects.latest("created_at").config["aggregator"] == "fedavg"
