package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"time"
)

// pgbench prepares a pgbench with the variables of libpq.
func pgbench(cmd *exec.Cmd, host string, port int, user, password, sslMode string) *exec.Cmd {
	cmd.Env = append(cmd.Environ(), "PGHOST="+host, "PGPORT="+strconv.Itoa(port), "PGDATABASE=postgres", "PGUSER="+user, "PGPASSWORD="+password, "PGSSLMODE="+sslMode)
	return cmd
}

// postgresContenders are the ways of pgbench to PostgreSQL. Those with TLS have it
// towards the server.
func (d *databases) postgresContenders() []contender {
	outside := func(port int, sslMode string) func(context.Context, ...string) *exec.Cmd {
		return func(ctx context.Context, args ...string) *exec.Cmd {
			return pgbench(exec.CommandContext(ctx, "pgbench", args...), "127.0.0.1", port, d.db.User, d.db.Password, sslMode)
		}
	}
	server := int(d.db.Addr.Port())
	return []contender{
		{"direct, without TLS", outside(server, "disable"), 0},
		{"direct, TLS", outside(server, "require"), 0},
		{"PgBouncer, session mode, without TLS", outside(int(d.bounce[false].Addr.Port()), "disable"), d.bounce[false].PID()},
		{"PgBouncer, session mode, TLS", outside(int(d.bounce[true].Addr.Port()), "disable"), d.bounce[true].PID()},
		{"chaperone run, TLS, audit on", func(ctx context.Context, args ...string) *exec.Cmd {
			return pgbench(d.plugin(ctx, append([]string{"pgbench"}, args...)...), shopHost, server, "plugin", "none", "disable")
		}, 0},
	}
}

// The places of contenders.
const (
	directTLS  = 1
	bouncerTLS = 3
	chaperoned = 4
)

// postgresScene measures pgbench's select-only transactions.
func postgresScene(ctx context.Context, w *env) (t *table, err error) {
	d, err := w.newDatabases(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	t = &table{
		title: fmt.Sprintf("pgbench -S, transactions a second, %d rounds in turn; client, proxy and server share the CPUs", rounds),
		heads: []string{"protocol, connections"},
	}
	contenders := d.postgresContenders()
	for _, c := range contenders {
		t.heads = append(t.heads, c.name)
	}
	t.heads = append(t.heads, "chaperone to PgBouncer with TLS", "goal", "CPU of PgBouncer with TLS, of the sidecar, µs a transaction", "one to the other")
	seconds := strconv.Itoa(max(1, int(w.length/time.Second)))
	for _, load := range []struct {
		mode        string
		connections int
		goal        float64
	}{{"prepared", 8, 1}, {"prepared", 1, 0.9}, {"simple", 8, 0.9}, {"simple", 1, 0.9}} {
		args := []string{"-n", "-S", "-M", load.mode, "-c", strconv.Itoa(load.connections)}
		all, err := measure(ctx, contenders, task{
			args: append(slices.Clone(args), "-T", seconds), least: append(slices.Clone(args), "-t", "1"),
			figure: after("tps ="), n: after("actually processed:"),
		})
		if err != nil {
			return nil, err
		}
		row := []string{fmt.Sprintf("%s, %d", load.mode, load.connections)}
		for _, r := range all {
			row = append(row, fmt.Sprintf("%.0f", r.figure))
		}
		ours, bouncer := all[chaperoned], all[bouncerTLS]
		x := ours.figure / bouncer.figure
		t.add(append(row, fmt.Sprintf("%.2f", x), fmt.Sprintf("%.1f: %s", load.goal, verdict(x >= load.goal)),
			perOperation(bouncer, ours), fmt.Sprintf("%.2f", float64(ours.cpu)/float64(bouncer.cpu)))...)
	}
	return t, nil
}

// loginScene measures connecting, with a login of its own each time, from a lease in the
// cache.
func loginScene(ctx context.Context, w *env) (t *table, err error) {
	d, err := w.newDatabases(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	all := d.postgresContenders()
	contenders := []contender{all[directTLS], all[chaperoned]}
	times, err := measure(ctx, contenders, task{args: []string{"-n", "-S", "-C", "-c", "1", "-t", "200"}, figure: after("average connection time =")})
	if err != nil {
		return nil, err
	}
	t = &table{title: "Connect and login, TLS and SCRAM to the server, 200 times each in turn", heads: []string{"", "average", "added", "goal"}}
	t.add(contenders[0].name, fmt.Sprintf("%.2f ms", times[0].figure), "", "")
	added := times[1].figure - times[0].figure
	t.add(contenders[1].name+", the lease in the cache", fmt.Sprintf("%.2f ms", times[1].figure), fmt.Sprintf("%.2f ms", added), "below 5 ms: "+verdict(added < 5))
	return t, nil
}
