// Command databaseclients runs the steps of one client of a database and prints a
// line "STEP: RESULT" for each. A line that begins with "refused" is of a statement
// that is not granted. All others must be the same directly and through the sidecar.
package main

import (
	"fmt"
	"os"
	"strings"
)

const (
	first   = "SELECT id, customer, amount::text FROM orders ORDER BY id LIMIT 3"
	secrets = "SELECT value FROM secrets"
	count   = "SELECT count(*) FROM orders"
)

func main() {
	clients := map[string]func() error{
		"pgx": runPGX, "pgxpool": runPool, "pq": runPQ, "goredis": runGoRedis, "rueidis": runRueidis,
	}
	run := clients[os.Args[1]]
	if err := run(); err != nil {
		fmt.Println("broken:", oneLine(err))
		os.Exit(1)
	}
}

func say(step string, result ...any) {
	fmt.Println(append([]any{step + ":"}, result...)...)
}

func oneLine(value any) string { return strings.Join(strings.Fields(fmt.Sprint(value)), " ") }

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}
