"""Writes a model's answer into a stream, piece by piece. Needs redis-py."""

import os

import redis

store = redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://localhost:6379/0"))


def write(answer_id, pieces):
    key, end = f"answer:{answer_id}", "failed"
    try:
        for piece in pieces:
            store.xadd(key, {"chunk": piece})
        end = "1"
    finally:
        store.xadd(key, {"done": end})
        store.expire(key, 3600)


if __name__ == "__main__":
    write("hello", ["Hel", "lo, ", "42", "!"])
