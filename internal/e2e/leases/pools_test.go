package leases

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// workers of a pool send a statement, and pause for up to pause.
const (
	workers = 4
	pause   = 400 * time.Millisecond
)

// runPool is the main of a plugin with two pools: pgxpool in this process, and HikariCP in
// the one that its arguments start. SIGTERM ends both, which then print what failed.
func runPool() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	child := exec.Command(os.Args[1], os.Args[2:]...)
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	end, err := child.StdinPipe()
	if err != nil || child.Start() != nil {
		return 1
	}
	pool, err := openPool(ctx)
	if err != nil {
		fmt.Println("pgxpool:", err)
		return 1
	}
	var all sync.WaitGroup
	var queries, failed atomic.Int64
	for range workers {
		all.Go(func() {
			for ctx.Err() == nil {
				var n int
				err := pool.QueryRow(context.WithoutCancel(ctx), "SELECT count(*) FROM orders").Scan(&n)
				if queries.Add(1); err != nil || n != 100 {
					failed.Add(1)
					fmt.Println("pgxpool failed:", n, err)
				}
				time.Sleep(rand.N(pause))
			}
		})
	}
	all.Wait()
	fmt.Printf("pgxpool made %d statements, %d failed\n", queries.Load(), failed.Load())
	_ = end.Close()
	_ = child.Wait()
	return 0
}

// openPool opens a pool that validates each connection before its use.
func openPool(ctx context.Context) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(connectString() + fmt.Sprintf(" pool_max_conns=%d pool_min_conns=%d", workers, workers))
	if err != nil {
		return nil, err
	}
	cfg.PingTimeout = time.Minute
	cfg.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return true }
	cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement
	return pgxpool.NewWithConfig(ctx, cfg)
}

// TestPoolsOutliveRotations has two pools that validate their connections use a database
// whose lease rotates ten times, and twenty in the long run: no statement of theirs fails.
// Idle sessions end in the last fifth of a lease. A lease is so long that this fifth is longer
// than the processor is away from the sidecar when other tests run beside it.
func TestPoolsOutliveRotations(t *testing.T) {
	t.Parallel()
	testenv.Require(t, testenv.Program("java"), testenv.Program("javac"), testenv.Program("mvn"))
	rotations := 10
	if os.Getenv("CHAPERONE_LONG") == "1" {
		rotations = 20
	}
	l := newLab(t, labConfig{role: testenv.DatabaseRole{TTL: 14 * time.Second, MaxTTL: 14 * time.Second}})
	jars := testenv.MustGet(testenv.InstallJavaDatabaseClients(context.WithoutCancel(t.Context()), nil))(t)
	testenv.Must(t, os.CopyFS(l.File("jars"), os.DirFS(jars)))
	compile := exec.Command("javac", "-cp", l.File("jars")+"/*", "-d", l.Dir, filepath.Join("testdata", "Pool.java"))
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("compile: %v\n%s", err, out)
	}
	cmd := l.pluginCommand("pool", l.plugin, "java", "-Xmx96m", "-Dcom.zaxxer.hikari.aliveBypassWindowMs=0", "-cp", l.Dir+":"+l.File("jars")+"/*", "Pool",
		fmt.Sprintf("jdbc:postgresql://%s:%d/shop?user=plugin&sslmode=verify-full&sslfactory=org.postgresql.ssl.DefaultJavaSSLFactory", shopHost, l.db.Addr.Port()),
		fmt.Sprint(workers), fmt.Sprint(pause.Milliseconds()))
	p := l.StartProcess(cmd)
	deadline := time.Now().Add(6 * time.Minute)
	for l.credentialRecords("replaced") < rotations {
		select {
		case <-p.Ended:
			t.Fatalf("the plugin has ended:\n%s", p.Output.String())
		case <-time.After(200 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d rotations:\n%s", l.credentialRecords("replaced"), p.Output.String())
		}
	}
	testenv.Must(t, p.Cmd.Process.Signal(syscall.SIGTERM))
	p.Wait()
	made := func(pool string) (statements, failed int) {
		for line := range strings.Lines(p.Output.String()) {
			_, _ = fmt.Sscanf(line, pool+" made %d statements, %d failed", &statements, &failed)
		}
		return statements, failed
	}
	for _, pool := range []string{"pgxpool", "HikariCP"} {
		if statements, failed := made(pool); statements < 100 || failed != 0 || strings.Contains(p.Output.String(), pool+" failed") {
			t.Errorf("%s made %d statements, and %d failed:\n%s", pool, statements, failed, p.Output.String())
		}
	}
	users := map[string]bool{}
	for _, r := range l.records(func(r record) bool { return r.Kind == "decision" && r.Session == "" && r.Allowed }) {
		users[r.Lease] = true
	}
	if len(users) < rotations {
		t.Errorf("sessions carried %d leases of %d", len(users), rotations)
	}
	if n := l.credentialRecords("lost"); n != 0 {
		t.Errorf("%d leases were lost", n)
	}
}
