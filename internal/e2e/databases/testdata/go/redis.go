package main

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

func redisAddress() string { return net.JoinHostPort(os.Getenv("REDIS_HOST"), os.Getenv("REDIS_PORT")) }

func runGoRedis() error {
	ctx := context.Background()
	for _, protocol := range []int{3, 2} {
		db := redis.NewClient(&redis.Options{Addr: redisAddress(), Username: os.Getenv("REDIS_USER"), Password: os.Getenv("REDIS_PASSWORD"), Protocol: protocol})
		if err := goRedis(ctx, db); err != nil {
			return err
		}
		if err := db.Close(); err != nil {
			return err
		}
	}
	return nil
}

func goRedis(ctx context.Context, db *redis.Client) error {
	const me = "app:goredis"
	if err := db.Del(ctx, me, me+":n", me+":hash").Err(); err != nil {
		return err
	}
	say("set", db.Set(ctx, me, "value", time.Minute), db.Get(ctx, me))
	say("missing", db.Get(ctx, me+":none").Err())
	say("hash", db.HSet(ctx, me+":hash", "a", 1, "b", 2), db.HGetAll(ctx, me+":hash"))
	results, err := db.Pipelined(ctx, func(p redis.Pipeliner) error {
		for range 100 {
			p.Incr(ctx, me+":n")
		}
		return nil
	})
	say("pipeline", len(results), results[99], err)
	results, err = db.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.Incr(ctx, me+":n")
		p.Get(ctx, me)
		return nil
	})
	say("transaction", results, err)
	say("watch", db.Watch(ctx, func(tx *redis.Tx) error {
		_, err := tx.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, me+":n"); return nil })
		return err
	}, me+":n"))
	say("refused", oneLine(db.Get(ctx, "other:1").Err()))
	results, _ = db.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.Get(ctx, me)
		p.Get(ctx, "other:1")
		p.Get(ctx, me)
		return nil
	})
	say("pipeline with one refused", results[0].Err(), results[1].Err() != nil, results[2])
	_, err = db.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.Get(ctx, "other:1")
		p.Get(ctx, me)
		return nil
	})
	say("aborted transaction", oneLine(err))
	say("after", db.Get(ctx, me))
	sub := db.Subscribe(ctx, "app.news")
	defer sub.Close()
	subscribed, err := sub.Receive(ctx)
	say("subscribed", subscribed, err)
	say("published", db.Publish(ctx, "app.news", "hello"))
	message, err := sub.ReceiveMessage(ctx)
	say("message", message, err)
	say("large", db.Set(ctx, me, strings.Repeat("x", 5_000_000), 0).Val(), len(db.Get(ctx, me).Val()))
	return db.Del(ctx, me).Err()
}

func runRueidis() error {
	ctx := context.Background()
	const me = "app:rueidis"
	db, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{redisAddress()}, Username: os.Getenv("REDIS_USER"), Password: os.Getenv("REDIS_PASSWORD")})
	if err != nil {
		return err
	}
	defer db.Close()
	do := func(args ...string) (string, error) {
		return db.Do(ctx, db.B().Arbitrary(args...).Build()).ToString()
	}
	text := func(args ...string) string {
		answer, err := do(args...)
		if err != nil {
			return "error " + oneLine(err)
		}
		return answer
	}
	say("set", text("SET", me, "value"), text("GET", me), text("GET", me+":none"))
	cached, err := db.DoCache(ctx, db.B().Get().Key(me).Cache(), time.Minute).ToString()
	say("cached", cached, err)
	again := db.DoCache(ctx, db.B().Get().Key(me).Cache(), time.Minute)
	say("cached", again.IsCacheHit(), again.Error())
	say("changed", text("SET", me, "other"))
	for range 100 { // until the invalidation has come
		if cached, err = db.DoCache(ctx, db.B().Get().Key(me).Cache(), time.Minute).ToString(); cached == "other" {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	say("invalidated", cached, err)
	var commands []rueidis.Completed
	for range 100 {
		commands = append(commands, db.B().Ping().Build())
	}
	answers := db.DoMulti(ctx, commands...)
	say("pipeline", len(answers), !slices.ContainsFunc(answers, func(r rueidis.RedisResult) bool { return r.Error() != nil }))
	_, err = do("GET", "other:1")
	refused, isRefused := errors.AsType[*rueidis.RedisError](err)
	say("refused", isRefused, oneLine(refused))
	say("after", text("GET", me), text("DEL", me))
	return nil
}
