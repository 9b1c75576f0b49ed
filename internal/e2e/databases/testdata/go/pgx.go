package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

func state(err error) string {
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok {
		return refused.Code
	}
	return oneLine(err)
}

func runPGX() error {
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		if err := pgxMode(mode); err != nil {
			return fmt.Errorf("%v: %w", mode, err)
		}
	}
	return nil
}

func pgxMode(mode pgx.QueryExecMode) error {
	ctx := context.Background()
	config := must(pgx.ParseConfig("")) // from the environment, as libpq does
	config.DefaultQueryExecMode = mode
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	me := "pgx " + mode.String()
	rows := must(conn.Query(ctx, first))
	for _, row := range must(pgx.CollectRows(rows, pgx.RowToMap)) {
		say("select", row)
	}
	for n := range 8 {
		var amount string
		err := conn.QueryRow(ctx, "SELECT amount::text FROM orders WHERE id = $1", n+1).Scan(&amount)
		say("prepared", amount, err)
	}
	must(conn.Exec(ctx, "DELETE FROM notes WHERE client = $1", me))
	tx := must(conn.Begin(ctx))
	must(tx.Exec(ctx, "INSERT INTO notes VALUES ($1, 1, 'lost')", me))
	say("rollback", tx.Rollback(ctx))
	say("commit", pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		must(tx.Exec(ctx, "INSERT INTO notes VALUES ($1, 1, 'kept')", me))
		return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { // a savepoint
			must(tx.Exec(ctx, "INSERT INTO notes VALUES ($1, 2, 'kept')", me))
			return nil
		})
	}))
	var copied [][]any
	for n := range 3000 {
		copied = append(copied, []any{me, n + 10, "copied"})
	}
	done, err := conn.CopyFrom(ctx, pgx.Identifier{"notes"}, []string{"client", "n", "body"}, pgx.CopyFromRows(copied))
	say("copy in", done, err)
	var out strings.Builder
	tag, err := conn.PgConn().CopyTo(ctx, &out, "COPY orders (id) TO STDOUT")
	say("copy out", tag, strings.Count(out.String(), "\n"), err)
	_, err = conn.Exec(ctx, "SELECT 1/0")
	say("division", state(err))
	_, err = conn.Exec(ctx, "INSERT INTO notes VALUES ($1, 1, 'again')", me)
	say("unique", state(err))
	_, err = conn.Exec(ctx, secrets)
	say("refused", oneLine(err))
	pgxBatches(ctx, conn)
	tx = must(conn.Begin(ctx))
	_, err = tx.Exec(ctx, secrets)
	say("refused in a transaction", oneLine(err))
	_, err = tx.Exec(ctx, "UPDATE notes SET body = 'never' WHERE client = $1", me)
	say("in the failed transaction", state(err))
	say("rollback", tx.Rollback(ctx))
	var left int
	say("after", conn.QueryRow(ctx, count).Scan(&left), left)
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	_, err = conn.Exec(short, "SELECT pg_sleep(30)")
	say("cancel", err != nil)
	return nil
}

// pgxBatches sends pipelines, one with a refused statement in its middle.
func pgxBatches(ctx context.Context, conn *pgx.Conn) {
	batch := &pgx.Batch{}
	for n := range 20 {
		batch.Queue("SELECT customer FROM orders WHERE id = $1", n+1)
	}
	results := conn.SendBatch(ctx, batch)
	for range 20 {
		var customer string
		err := results.QueryRow().Scan(&customer)
		say("batch", customer, err)
	}
	say("batch end", results.Close())
	batch = &pgx.Batch{}
	batch.Queue(count)
	batch.Queue(secrets)
	batch.Queue(count)
	say("refused in a batch", oneLine(conn.SendBatch(ctx, batch).Close()))
}

func runPool() error {
	ctx := context.Background()
	config := must(pgxpool.ParseConfig(""))
	config.MaxConns, config.MinConns = 8, 2
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	defer pool.Close()
	var (
		all    sync.WaitGroup
		mu     sync.Mutex
		failed []error
	)
	for n := range 64 {
		all.Go(func() {
			var customer string
			err := pool.QueryRow(ctx, "SELECT customer FROM orders WHERE id = $1", n+1).Scan(&customer)
			if err == nil && customer == "" {
				err = errors.New("no customer")
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = append(failed, err)
			}
		})
	}
	all.Wait()
	say("pool", failed)
	_, err = pool.Exec(ctx, secrets)
	say("refused", oneLine(err))
	say("ping", pool.Ping(ctx))
	listener := must(pool.Acquire(ctx))
	defer listener.Release()
	say("connections", pool.Stat().TotalConns() >= 1)
	return nil
}
