"""Reads what the watchers of tests/walk saw, and prints its figures as a table; fails where a watcher has died or missed
the end, and where anything was lost, repeated or out of order.

    walk_report.py REPORT PHASES WRITTEN      PHASES: a line "SECONDS NAME" for the beginning of each phase
                                              WRITTEN: the number of events of each job
"""

import json
import sys


def share(values, part):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * part))] if values else float("nan")


def first_time(events):
    """Leaves those out that came once more after a reset."""
    seen = set()
    return [event for event in events if not (event[0] in seen or seen.add(event[0]))]


def main():
    report, phases, written = json.load(open(sys.argv[1])), [], int(sys.argv[3])
    for line in open(sys.argv[2]):
        at, name = line.strip().split(" ", 1)
        phases.append((float(at), name))
    restore = phases[-2][0]

    def during(at):
        return next((name for begin, name in reversed(phases) if begin <= at), "before the first")

    # Who was still waiting when all was over has missed the end.
    dead = [one for one in report if one["died"] or not one["is_complete"]]
    resets = sum(len(one["resets"]) for one in report)
    lost = repeated = late = untimely = 0
    for one in report:
        numbers = [number for number, _, _ in one["events"]]
        lost += written - len(set(numbers))
        # Only the restore, since it is another life of the database, may have a watcher begin anew, and only once. Then all of
        # it comes once more, as the stream has said; what came before and what came after are each without a repeat.
        untimely += sum(at < restore for at in one["resets"]) + max(len(one["resets"]) - 1, 0)
        reset = one["resets"][0] if one["resets"] else float("inf")
        for part in ([n for n, _, came in one["events"] if came < reset], [n for n, _, came in one["events"] if came >= reset]):
            repeated += len(part) - len(set(part))
            late += sum(before > after for before, after in zip(part, part[1:]))
    for one in dead[:10]:
        said = [f"{during(at)}: {said}" for at, said in one["notices"]]
        print(f"a watcher of {one['job']} died of {one['died'] or 'nothing'}, after {said}")
    print(f"\n{len(report)} watchers, {written} events of each job, {sum(len(one['events']) for one in report)} deliveries: "
          f"{len(dead)} dead, {lost} lost, {repeated} repeated, {late} out of order, {resets} resets ({untimely} untimely)\n")
    print("| phase | took | longest gap of a watcher, p50 | max | latency p50 | p99 | reconnects |\n|---|---|---|---|---|---|---|")
    for (begin, name), (end, _) in zip(phases, phases[1:]):
        gaps, latencies, back = [], [], 0
        for one in report:
            new = [(at, came) for _, at, came in first_time(one["events"]) if begin <= came < end]
            times = [came for _, came in new]
            gaps.append(max((after - before for before, after in zip(times, times[1:])), default=0))
            latencies += [came - at for at, came in new]
            back += sum(begin <= at < end for at in one["returns"])
        print(f"| {name} | {end - begin:.1f} s | {share(gaps, 0.5):.2f} s | {max(gaps, default=0):.2f} s "
              f"| {share(latencies, 0.5) * 1e3:.1f} ms | {share(latencies, 0.99) * 1e3:.0f} ms | {back} |")
    sys.exit(1 if dead or lost or repeated or late or untimely else 0)


main()
