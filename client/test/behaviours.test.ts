// Runs the one list of behaviours in Node, in a real Chromium, and in Firefox where one is named, against a real daemon
// behind a proxy that misbehaves.
import { afterAll, afterEach, beforeAll, describe, it } from "vitest";
import { connection, daemons, trouble } from "./behaviours.ts";
import { networks } from "./networks.ts";
import { type Client, inChromium, inNode } from "./support/client.ts";
import { Daemon } from "./support/daemon.ts";
import { hasFirefox, inFirefox } from "./support/firefox.ts";
import { Gateway } from "./support/gateway.ts";
import { World } from "./support/world.ts";

const BEHAVIOURS = [...connection, ...trouble, ...networks, ...daemons];
const PLACES: Record<string, (origin: () => string) => Promise<Client>> = {
  Node: async () => inNode(),
  Chromium: (origin) => inChromium(origin),
  // Some browsers have no EventSource. The client does not use it.
  "Chromium without EventSource": (origin) => inChromium(origin, "delete globalThis.EventSource"),
  ...(hasFirefox() && { Firefox: (origin: () => string) => inFirefox(origin) }),
};
let jobs = 0;

for (const [place, start] of Object.entries(PLACES)) {
  describe(place, () => {
    let shared: Daemon;
    let target: Daemon;
    let proxy: Gateway;
    let client: Client;
    beforeAll(async () => {
      shared = target = await Daemon.start();
      proxy = await Gateway.before(() => target.origin);
      client = await start(() => proxy.origin);
    });
    afterEach(async () => {
      await client.reset();
      proxy.reset();
      if (target !== shared) await target.stop();
      target = shared;
    });
    afterAll(async () => {
      await client?.stop();
      await proxy?.stop();
      await shared?.stop();
    });
    const list = place.includes("without") ? connection.slice(0, 3) : BEHAVIOURS;
    for (const { name, daemon, stopsClock, run } of list) {
      it.skipIf(stopsClock && place === "Firefox")(name, async () => {
        if (daemon) target = await Daemon.start(daemon);
        await run(new World(target, proxy, client, `job-${(jobs += 1)}`));
      });
    }
  });
}
