// Command prepare builds and fetches, once, the servers of the tests and the demo,
// so that no test has to wait for them:
//
//	go run ./tools/prepare vault envoy goplugin npm npm-clients npm-databases postgres redis python-clients python-databases java-databases
//
// It keeps them in .cache, or in the folder that CHAPERONE_CACHE names. An
// unavailable one is reported, and is an error only with CHAPERONE_REQUIRE=1.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "prepare:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, parts []string, out io.Writer) error {
	for _, part := range parts {
		get, err := getter(part)
		if err != nil {
			return err
		}
		err = withProgress(out, part, func() error {
			_, err := get(ctx, out)
			return err
		})
		switch {
		case err == nil:
		case ctx.Err() != nil || os.Getenv("CHAPERONE_REQUIRE") == "1":
			return err
		default:
			fmt.Fprintf(out, "prepare: %s is not available, and its tests are left out: %v\n", part, err)
		}
	}
	return nil
}

func getter(part string) (func(context.Context, io.Writer) (string, error), error) {
	switch part {
	case "vault":
		return testenv.BuildVault, nil
	case "envoy":
		return testenv.FetchEnvoy, nil
	case "goplugin":
		return testenv.BuildGoPlugin, nil
	case "npm":
		return testenv.InstallNode, nil
	case "npm-clients":
		return testenv.InstallNodeClients, nil
	case "python-clients":
		return testenv.InstallPythonClients, nil
	case "postgres":
		return testenv.InstallPostgres, nil
	case "redis":
		return testenv.InstallRedis, nil
	case "npm-databases":
		return testenv.InstallNodeDatabaseClients, nil
	case "python-databases":
		return testenv.InstallPythonDatabaseClients, nil
	case "java-databases":
		return testenv.InstallJavaDatabaseClients, nil
	default:
		return nil, fmt.Errorf("unknown part %q: name vault, envoy, goplugin, or npm, npm-clients, npm-databases, postgres, redis, python-clients, python-databases or java-databases", part)
	}
}

// withProgress runs work and prints every ten seconds that it still runs.
func withProgress(out io.Writer, what string, work func() error) error {
	begun := time.Now()
	done := make(chan error, 1)
	go func() { done <- work() }()
	ticks := time.NewTicker(10 * time.Second)
	defer ticks.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-ticks.C:
			fmt.Fprintf(out, "prepare: %s, %v so far\n", what, time.Since(begun).Round(time.Second))
		}
	}
}
