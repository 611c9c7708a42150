"""Reads what the watchers of tests/walk saw, and prints its figures as a table; fails where anything was lost or repeated.

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
    resets = [sum("what follows is all there is" in said for _, said in one["notices"]) for one in report]
    lost = repeated = late = 0
    for one, times in zip(report, resets):
        numbers = [number for number, _, _ in one["events"]]
        lost += written - len(set(numbers))
        # After a reset all of it comes once more, as the stream has said.
        if not times:
            repeated += len(numbers) - len(set(numbers))
            late += sum(before > after for before, after in zip(numbers, numbers[1:]))
        if one["code"] != 0:
            print(f"a watcher ended with {one['code']}: {one['notices'][-3:]}")
    print(f"\n{len(report)} watchers, {written} events of each job, {sum(len(one['events']) for one in report)} deliveries: "
          f"{lost} lost, {repeated} repeated, {late} out of order, {sum(resets)} resets\n")
    print("| phase | took | longest gap of a watcher, p50 | max | latency p50 | p99 | reconnects |\n|---|---|---|---|---|---|---|")
    for (begin, name), (end, _) in zip(phases, phases[1:]):
        gaps, latencies, back = [], [], 0
        for one in report:
            new = [(at, came) for _, at, came in first_time(one["events"]) if begin <= came < end]
            times = [came for _, came in new]
            gaps.append(max((after - before for before, after in zip(times, times[1:])), default=0))
            latencies += [came - at for at, came in new]
            back += sum("connected again" in said for at, said in one["notices"] if begin <= at < end)
        print(f"| {name} | {end - begin:.1f} s | {share(gaps, 0.5):.2f} s | {max(gaps, default=0):.2f} s "
              f"| {share(latencies, 0.5) * 1e3:.1f} ms | {share(latencies, 0.99) * 1e3:.0f} ms | {back} |")
    is_good = not (lost or repeated or late) and max(resets, default=0) <= 1 and all(one["code"] == 0 for one in report)
    sys.exit(0 if is_good else 1)


main()
