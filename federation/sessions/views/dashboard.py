"""The dashboard: the project at a glance, and what to do next in a new one."""

from __future__ import annotations

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from clients_app.combiner_states import combiner_states
from clients_app.selectors import combiners_of
from federation.events.pages import live_frame
from federation.events.selectors import events_of
from federation.models.selectors import means_of, trail
from federation.sessions.selectors import counts_of, open_round_of, round_lines, running_of, sessions_of
from projects.pages import actor_of, shown


@login_required
@require_GET
def project_dashboard(request: HttpRequest, slug: str) -> HttpResponse:
    context = live_frame(request, slug, "dashboard")
    project, actor = context["project"], actor_of(request)
    running = []
    for session in running_of(actor, project):
        round_ = open_round_of(session)
        running.append((session, round_lines([round_])[0] if round_ else None))
    latest = trail(actor, project).defer("layout").first()
    counts = counts_of(actor, project)
    context |= {
        "counts": counts,
        "guide": counts.steps if not counts.trained else [],
        "combiners": combiner_states(project, list(combiners_of(project))),
        "running": running,
        "last_session": None if running else sessions_of(actor, project).first(),
        "latest": latest,
        "latest_means": sorted(means_of([latest.pk]).get(latest.pk, {}).items())[:6] if latest else [],
        "events": events_of(actor, project)[:8],
    }
    return shown(request, "projects/dashboard.html", "projects/_dashboard.html", context)
