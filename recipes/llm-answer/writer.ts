// Writes a model's answer into a stream, piece by piece. Needs the package `redis`.
import { createClient } from "redis";

const store = createClient({ url: "redis://localhost:6379/0" });
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
