// Writes a model's answer into a stream, piece by piece. Needs the package `redis`, and Node 22.18 or newer to run as it is.
import { createClient } from "redis";

const store = createClient({ url: process.env.REDIS_URL ?? "redis://localhost:6379/0" });
// The client reconnects by itself. Without a listener an error would end the process.
store.on("error", (error) => console.error(error));
await store.connect();

export async function write(answerId: string, pieces: AsyncIterable<string> | Iterable<string>) {
  const key = `answer:${answerId}`;
  let end = "failed";
  try {
    for await (const piece of pieces) await store.xAdd(key, "*", { chunk: piece });
    end = "1";
  } finally {
    await store.xAdd(key, "*", { done: end });
    await store.expire(key, 3600);
  }
}

export const close = () => store.close();

if (process.argv[1] === import.meta.filename) {
  await write("hello", ["Hel", "lo, ", "42", "!"]);
  await close();
}
