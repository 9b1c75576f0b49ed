package vault

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

func warmBroker(t testing.TB) (*Broker, authz.CredentialRef) {
	t.Helper()
	v := testenv.MustVault(t, testenv.VaultConfig{})
	testenv.Must(t, v.PutSecret(t.Context(), "weather", map[string]any{"api_key": "wk_1"}))
	b := broker(t, Config{Address: v.Address, Auth: approle(t, v, "weather", testenv.AppRole{Policy: readForecast}), MintsPerMinute: 1 << 20})
	key := ref("key", "secret/data/weather")
	testenv.MustGet(b.Credential(t.Context(), key))(t)
	return b, key
}

func TestWarmCredentialAllocatesNothing(t *testing.T) {
	b, key := warmBroker(t)
	if got := testing.AllocsPerRun(1000, func() { _, _ = b.Credential(t.Context(), key) }); got != 0 {
		t.Errorf("%v allocations", got)
	}
}

// cpuTime is what this process has computed so far, which on a machine that others use too
// is more reliable than the clock on the wall.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var usage unix.Rusage
	testenv.Must(b, unix.Getrusage(unix.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func BenchmarkCredential(b *testing.B) {
	broker, key := warmBroker(b)
	ctx := b.Context()
	b.Run("warm", func(b *testing.B) {
		b.ReportAllocs()
		began := cpuTime(b)
		for b.Loop() {
			if _, err := broker.Credential(ctx, key); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(cpuTime(b)-began)/float64(b.N), "cpu-ns/op")
	})
	b.Run("warm-parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := broker.Credential(ctx, key); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
	b.Run("cold", func(b *testing.B) {
		for b.Loop() {
			broker.Retain(ctx, nil)
			if _, err := broker.Credential(ctx, key); err != nil {
				b.Fatal(err)
			}
		}
	})
}
