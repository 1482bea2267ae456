import re
from django.urls import reverse
from playwright.sync_api import expect
def test_shots(world, owner, enter):
    for width in (1280, 390):
        for theme in ("light", "dark"):
            page = enter(owner, width=width, color_scheme=theme)
            page.goto(reverse("session-new", args=[world.project.slug, "start"]))
            page.get_by_label("How updates become a model").scroll_into_view_if_needed()
            page.screenshot(path=f"/tmp/b/avg-{width}-{theme}.png")
            page.get_by_label("How updates become a model").select_option("fedopt")
            page.get_by_label("Momentum (beta1)").fill("1")
            page.get_by_label("Adaptivity (tau)").scroll_into_view_if_needed()
            page.screenshot(path=f"/tmp/b/opt-{width}-{theme}.png")
            page.get_by_role("button", name="Start run").click()
            expect(page.get_by_text("Enter a number from 0 to below 1.")).to_be_visible()
            page.screenshot(path=f"/tmp/b/bad-{width}-{theme}.png")
            page.get_by_label("Momentum (beta1)").fill("0.9")
            page.get_by_role("button", name="Start run").click()
            expect(page).to_have_url(re.compile(r"/sessions/[0-9a-f-]{36}/"))
            page.get_by_role("region", name="Settings of this session").scroll_into_view_if_needed()
            page.screenshot(path=f"/tmp/b/page-{width}-{theme}.png")
