"""What services tell Prometheus: how many there are, and how many are not as they were asked to be."""

from __future__ import annotations

from collections.abc import Iterator

from frameworks.services.framework import Services
from model.metrics import Family, gauge


def families(services: Services) -> Iterator[Family]:
    apps = [services.sized(app) for app in services.apps()]
    wanted = sum(app.instances for app in apps)
    running = sum(run.running for app in apps for run in services.runs(app.id))
    yield gauge("tepui_services", "Services.", float(len(apps)))
    yield gauge("tepui_deployments", "Services that are not yet as they were asked to be.", float(services.deploying()))
    yield gauge("tepui_service_instances", "Tasks that services ask for.", float(wanted))
    yield gauge("tepui_service_instances_running", "Tasks of services that run.", float(running))
