import sys

import redis

from common import say, one_line
import os

for version in (2, 3):
    r = redis.Redis(os.environ["REDIS_HOST"], int(os.environ["REDIS_PORT"]), username=os.environ["REDIS_USER"], password=os.environ["REDIS_PASSWORD"],
                    protocol=version, decode_responses=True)
    me = f"app:redis-py:{version}"
    r.delete(me, me + ":hash", me + ":list", me + ":n")
    say("ping", r.ping())
    say("set", r.set(me, "value", ex=100), r.get(me), 0 < r.ttl(me) <= 100)
    say("missing", r.get(me + ":none"))
    say("hash", r.hset(me + ":hash", mapping={"a": 1, "b": 2}), r.hgetall(me + ":hash"))
    say("list", r.rpush(me + ":list", *range(1000)), len(r.lrange(me + ":list", 0, -1)))
    with r.pipeline(transaction=False) as p:
        for n in range(100):
            p.incr(me + ":n")
        say("pipeline", p.execute()[-1])
    with r.pipeline() as p:
        p.incr(me + ":n").get(me)
        say("transaction", p.execute())
    try:
        r.hget(me, "field")
    except redis.ResponseError as e:
        say("wrong type", one_line(e))
    try:
        r.get("other:1")
    except redis.ResponseError as e:
        say("refused", type(e).__name__, one_line(e))
    with r.pipeline(transaction=False) as p:
        p.get(me).get("other:1").get(me)
        results = p.execute(raise_on_error=False)
        say("pipeline with one refused", results[0], type(results[1]).__name__, results[2])
    try:
        with r.pipeline() as p:
            p.get(me).get("other:1")
            p.execute()
    except redis.ResponseError as e:
        say("refused in a transaction", type(e).__name__, one_line(e))
    say("after", r.get(me))
    sub = r.pubsub()
    sub.subscribe("app.news")
    say("subscribed", sub.get_message(timeout=10)["type"])
    say("published", r.publish("app.news", "hello"))
    m = sub.get_message(timeout=10)
    say("message", m["type"], m["channel"], m["data"])
    sub.close()
    big = "x" * 5_000_000
    say("large", r.set(me, big), len(r.get(me)))
    r.delete(me)
    say("scan", sorted(r.scan_iter(match=me + ":*")))
    r.close()
