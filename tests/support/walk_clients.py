"""The watchers of tests/walk: many `jobcast tail`, each line of which is stamped with the time at which it came.

    walk_clients.py REPORT CLIENTS JOB... -- COMMAND...     COMMAND is run once for each client, `{job}` in it is the job

Ends when every tail has, and writes to REPORT, as JSON, for each client: its job, its exit code, its notices, and the number
in the payload of each event with the seconds since the epoch at which it was written and at which it came.
"""

import asyncio
import json
import sys
import time


async def watch(job, command):
    pipe = asyncio.subprocess.PIPE
    tail = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    seen, notices = [], []

    async def events():
        async for line in tail.stdout:
            payload = json.loads(line)["payload"]
            seen.append((payload["n"], payload["at"], time.time()))

    async def words():
        async for line in tail.stderr:
            notices.append((time.time(), line.decode(errors="replace").strip()))

    await asyncio.gather(events(), words())
    return {"job": job, "code": await tail.wait(), "notices": notices, "events": seen}


async def main():
    report, clients, *rest = sys.argv[1:]
    split = rest.index("--")
    jobs, command = rest[:split], rest[split + 1 :]
    all_of = [jobs[number % len(jobs)] for number in range(int(clients))]
    watched = [watch(job, [part.replace("{job}", job) for part in command]) for job in all_of]
    results = await asyncio.gather(*watched)
    with open(report, "w") as file:
        json.dump(results, file)


asyncio.run(main())
