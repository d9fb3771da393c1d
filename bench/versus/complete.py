"""What a campaign has not measured: because it was cut off, or because it was not asked to. Pure."""

from collections.abc import Iterable

from .results import Campaign
from .rivals import PROXIES


def planned(campaign: Campaign) -> set[tuple[str, str, int]]:
    """Scenario, proxy and round of all that its command was to measure."""
    workers = len(campaign.cpus_proxy)
    return {
        (scenario, proxy, number)
        for scenario in campaign.scenarios
        for proxy in campaign.versions
        for number in range(1, campaign.rounds + 1)
        if f"{proxy} in {scenario}" not in campaign.skipped
        and (proxy not in PROXIES or workers <= (PROXIES[proxy].workers_max or workers))
    }


def cut_off(campaign: Campaign) -> str | None:
    """Where it ended, if that was before its end."""
    wanted = planned(campaign)
    found = wanted & {(row.scenario, row.proxy, row.round) for row in campaign.rows}
    if found == wanted:
        return None
    last = max((row.round for row in campaign.rows), default=1)
    return (
        f"cut off in round {last} of {campaign.rounds}, after {len(found)} of {len(wanted)} "
        "measurements"
    )


def lacks(campaign: Campaign, scenarios: Iterable[str]) -> list[str]:
    """Why the README's table, which has all of the scenarios and proxies, cannot come from it."""
    found = []
    if where := cut_off(campaign):
        found.append(f"it was {where}")
    if missing := [name for name in scenarios if name not in campaign.scenarios]:
        found.append(f"it has no rows {', '.join(missing)}")
    wanted = [name for name, proxy in PROXIES.items() if not proxy.direct]
    if missing := [name for name in wanted if name not in campaign.versions]:
        found.append(f"it has no {', '.join(missing)}")
    return found
