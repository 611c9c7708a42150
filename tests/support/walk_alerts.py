"""Asks the Prometheus of tests/walk which alerts have fired; fails unless they are those that were expected, and unless it
has an answer to each query of the Grafana dashboard.

    walk_alerts.py URL WATCHERS INSTANCE,INSTANCE ALERT...     WATCHERS: the number that the recording rule must once have seen
"""

import json
import pathlib
import sys
from urllib.parse import urlencode
from urllib.request import urlopen

DASHBOARD = pathlib.Path(__file__).parents[2] / "deploy/grafana/jobcast.json"
# What Grafana puts in place of these; the last one is a range that holds some scrapes.
VARIABLES = {"$job": "jobcast", "$instance": ".*", "$__rate_interval": "1m"}


def main():
    url, watchers, instances, *expected = sys.argv[1:]

    def ask(path, **parameters):
        with urlopen(f"{url}/api/v1/{path}?{urlencode(parameters)}", timeout=30) as answer:
            return json.load(answer)["data"]

    def query(expression):
        """Returns the labels and the value of each series."""
        return [(one["metric"], float(one["value"][1])) for one in ask("query", query=expression)["result"]]

    faults = []
    rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
    alerts = {rule["name"] for rule in rules if rule["type"] == "alerting"}
    faults += [f"{rule['name']} could not be evaluated: {rule.get('lastError')}" for rule in rules if rule["health"] != "ok"]
    faults += [f"there is no rule {name}" for name in sorted(set(expected) - alerts)]
    scraped = {labels["instance"] for labels, _ in query('count_over_time(up{job="jobcast"}[1h])')}
    if scraped != set(instances.split(",")):
        faults.append(f"scraped were {scraped}, not {instances}")
    most = max((value for _, value in query("max_over_time(jobcast:subscribers:sum[1h])")), default=0)
    if most < int(watchers):
        faults.append(f"the rules have seen {most:.0f} subscribers, not {watchers}")

    queries = [target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel.get("targets", [])]
    for expression in queries:
        for variable, value in VARIABLES.items():
            expression = expression.replace(variable, value)
        if not query(expression):
            faults.append(f"the dashboard's query has no answer: {expression}")

    fired = {}
    for labels, _ in query('count_over_time(ALERTS{alertstate="firing"}[1h])'):
        about = ", ".join(f"{name} {labels[name]}" for name in ("instance", "code") if name in labels)
        fired.setdefault(labels["alertname"], []).append(about)
    for name, about in sorted(fired.items()):
        print(f"fired: {name} ({'; '.join(sorted(about))})")
        if name not in expected:
            faults.append(f"{name} has fired, which was not expected")
    faults += [f"{name} has not fired" for name in expected if name not in fired]
    print(f"{len(alerts)} alerts over {len(scraped)} replicas: {', '.join(sorted(fired)) or 'none'} fired; {len(queries)} queries of the dashboard asked")
    for fault in faults:
        print(fault)
    sys.exit(1 if faults else 0)


main()
