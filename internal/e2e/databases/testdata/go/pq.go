package main

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/lib/pq"
)

func pqState(err error) string {
	if refused, ok := errors.AsType[*pq.Error](err); ok {
		return string(refused.Code)
	}
	return oneLine(err)
}

func runPQ() error {
	ctx := context.Background()
	const me = "pq"
	db, err := sql.Open("postgres", "") // from the environment
	if err != nil {
		return err
	}
	defer db.Close()
	rows, err := db.QueryContext(ctx, first)
	if err != nil {
		return err
	}
	for rows.Next() {
		var (
			id               int
			customer, amount string
		)
		err := rows.Scan(&id, &customer, &amount)
		say("select", id, customer, amount, err)
	}
	say("select end", rows.Err())
	prepared, err := db.PrepareContext(ctx, "SELECT amount::text FROM orders WHERE id = $1")
	if err != nil {
		return err
	}
	for n := range 3 {
		var amount string
		err := prepared.QueryRowContext(ctx, n+1).Scan(&amount)
		say("prepared", amount, err)
	}
	say("prepared end", prepared.Close())
	must(db.ExecContext(ctx, "DELETE FROM notes WHERE client = $1", me))
	tx := must(db.BeginTx(ctx, nil))
	must(tx.ExecContext(ctx, "INSERT INTO notes VALUES ($1, 1, 'lost')", me))
	say("rollback", tx.Rollback())
	tx = must(db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelSerializable}))
	must(tx.ExecContext(ctx, "INSERT INTO notes VALUES ($1, 1, 'kept')", me))
	say("commit", tx.Commit())
	tx = must(db.BeginTx(ctx, nil))
	copying := must(tx.PrepareContext(ctx, pq.CopyIn("notes", "client", "n", "body")))
	for n := range 2000 {
		must(copying.ExecContext(ctx, me, n+10, "copied"))
	}
	must(copying.ExecContext(ctx))
	say("copy in", copying.Close(), tx.Commit())
	_, err = db.ExecContext(ctx, "SELECT 1/0")
	say("division", pqState(err))
	_, err = db.ExecContext(ctx, "INSERT INTO notes VALUES ($1, 1, 'again')", me)
	say("unique", pqState(err))
	_, err = db.ExecContext(ctx, secrets)
	say("refused", oneLine(err))
	tx = must(db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true}))
	_, err = tx.ExecContext(ctx, secrets)
	say("refused in a transaction", oneLine(err))
	_, err = tx.ExecContext(ctx, count)
	say("in the failed transaction", pqState(err))
	say("rollback", tx.Rollback())
	var left int
	say("after", db.QueryRowContext(ctx, count).Scan(&left), left)
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	_, err = db.ExecContext(short, "SELECT pg_sleep(30)")
	say("cancel", err != nil)
	say("ping", db.PingContext(ctx))
	return nil
}
