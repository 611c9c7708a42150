"""The watchers of tests/walk: many browsers' EventSource, each event of which is stamped with the time at which it came.

    walk_clients.py REPORT URL CA CLIENTS JOB...     URL: where Jobcast is, with its prefix; CA: who signed its certificate

They do what the HTML standard says of server-sent events, and nothing kinder. A network error or the end of a stream makes
a watcher come back after the time that the last `retry:` has told, with `Last-Event-ID`. An answer that is not 200 with
`text/event-stream` is the last that it asks for: after `stream.complete` a 204 is the end as it should be, and anything else
is its death, since the page in a browser would hear nothing more.

Ends when every watcher has, or by SIGTERM, and writes to REPORT, as JSON, for each: its job, whether it has heard of the end,
the answer of which it died or null, the times at which it has come back and at which it was told to begin anew, its last
notices, and the number in the payload of each event with the seconds since the epoch at which it was written and at which it came.
"""

import asyncio
import codecs
import io
import json
import signal
import ssl
import sys
import time
from urllib.parse import urlsplit


class Watcher:
    def __init__(self, url, tls, job):
        self.url, self.tls, self.job = url, tls, job
        self.last_event_id, self.retry = "", 3.0
        self.is_complete, self.died = False, None
        self.seen, self.returns, self.resets, self.notices = [], [], [], []

    async def watch(self):
        """Watches until the answer that EventSource does not come back after."""
        while True:
            try:
                if await self.request():
                    return
                self.note("the stream ended")
            except (OSError, EOFError) as error:
                self.note(f"network error: {error!r}")
            await asyncio.sleep(self.retry)

    async def request(self):
        """Asks once, and takes what comes until it ends. Returns whether that was the last time."""
        reader, writer = await asyncio.open_connection(self.url.hostname, self.url.port, ssl=self.tls)
        try:
            asked = f"GET {self.url.path}/runner-jobs/{self.job}/events/stream HTTP/1.1\r\nHost: {self.url.netloc}\r\n"
            asked += "Accept: text/event-stream\r\nCache-Control: no-store\r\n"
            if self.last_event_id:
                asked += f"Last-Event-ID: {self.last_event_id}\r\n"
            writer.write(f"{asked}\r\n".encode())
            status, headers = await head(reader)
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if status != 200 or kind != "text/event-stream":
                is_end = status == 204 and self.is_complete
                self.died = None if is_end else f"{status} {kind}".strip()
                return True
            self.returns.append(time.time())
            # The id goes on from the last stream, as it does in browsers.
            decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")("replace"), translate=True)
            text = ""
            async for part in body(reader, headers):
                *blocks, text = (text + decoder.decode(part)).split("\n\n")
                for block in blocks:
                    self.dispatch(block)
            return False
        finally:
            writer.transport.abort()

    def dispatch(self, block):
        kind, data = "message", []
        for line in block.split("\n"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "data":
                data.append(value)
            elif field == "event":
                kind = value
            elif field == "id" and "\0" not in value:
                self.last_event_id = value
            elif field == "retry" and value.isascii() and value.isdigit():
                self.retry = int(value) / 1000
        if data:
            self.hear(kind, "\n".join(data))

    def hear(self, kind, data):
        if not kind.startswith("stream."):
            payload = json.loads(data)["payload"]
            self.seen.append((payload["n"], payload["at"], time.time()))
            return
        self.note(f"{kind} {data}")
        if kind == "stream.reset":
            self.resets.append(time.time())
        elif kind == "stream.complete":
            self.is_complete = True

    def note(self, said):
        self.notices.append((time.time(), said))

    def report(self):
        return {
            "job": self.job,
            "is_complete": self.is_complete,
            "died": self.died,
            # The first time is no return.
            "returns": self.returns[1:],
            "resets": self.resets,
            "notices": self.notices[-5:],
            "events": self.seen,
        }


async def head(reader):
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines[1:] if line)
    return int(lines[0].split(" ")[1]), {name.lower(): value.strip() for name, _, value in fields}


async def body(reader, headers):
    """Gives the parts of a body as they come. One that breaks off is a network error."""
    if "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
        return
    if headers.get("transfer-encoding", "").lower() != "chunked":
        while part := await reader.read(65536):
            yield part
        return
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        yield (await reader.readexactly(size + 2))[:-2]


async def main():
    report, url, ca, clients, *jobs = sys.argv[1:]
    tls = ssl.create_default_context(cafile=ca)
    watchers = [Watcher(urlsplit(url), tls, jobs[number % len(jobs)]) for number in range(int(clients))]
    watching = asyncio.gather(*(watcher.watch() for watcher in watchers))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, watching.cancel)
    try:
        await watching
    except asyncio.CancelledError:
        print("some watchers were still waiting", file=sys.stderr)
    with open(report, "w") as file:
        json.dump([watcher.report() for watcher in watchers], file)


asyncio.run(main())
