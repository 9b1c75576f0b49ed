package proxy_test

import (
	"context"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// TestSlowedTransfersHoldLittle starts downloads whose sender is fast and whose limit is
// low. The memory of each, client, proxy and upstream together, is bounded and does not
// grow.
func TestSlowedTransfersHoldLittle(t *testing.T) {
	const streams, most = 64, 320 << 10
	f := newFloods(t)
	api := ruleFor(f.api)
	api.Upgrades = []string{"websocket"}
	out, sink := tcpRule(f.out, authz.SchemeTCP, "api.weather.example"), tcpRule(f.sink, authz.SchemeTCP, "api.weather.example")
	sink.ID = "sink"
	for _, flow := range flows() {
		if !strings.HasSuffix(flow.name, "download") || strings.HasPrefix(flow.name, "upgraded") {
			continue // an upload is buffered by the plugin itself
		}
		before := inUse()
		w := newWorld(t, setup{input: throttled(authz.Limit{Count: 16 << 10, Period: 250 * time.Millisecond}, api, out, sink)}).sampled()
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		arrived := new(atomic.Int64)
		for range streams {
			running.Go(func() { flow.start(ctx, w, f, arrived) })
		}
		for late := testDeadline(); w.proxy.Open() < streams && !late(); {
		}
		time.Sleep(300 * time.Millisecond) // every window and buffer that can fill does
		each := (inUse() - before) / streams
		for late := testDeadline(); each > most && !late(); { // memory for opening them is released first
			each = (inUse() - before) / streams
		}
		time.Sleep(500 * time.Millisecond)
		later := (inUse() - before) / streams
		t.Logf("%-20s %d are open and hold %d KiB each, later %d KiB", flow.name, w.proxy.Open(), each>>10, later>>10)
		if max(each, later) > most {
			t.Errorf("%s: %d KiB are held for each transfer, later %d KiB; at most %d KiB may be", flow.name, each>>10, later>>10, most>>10)
		}
		cancel()
		w.stop()
		running.Wait()
	}
}

// inUse returns how much memory is reachable, or a goroutine's stack.
func inUse() int64 {
	runtime.GC()
	runtime.GC() // empties the pools too
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
