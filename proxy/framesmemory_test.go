package proxy_test

import (
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// TestMemoryAfterLargeHeads sends one large head on each of many connections that stay
// open: its memory is released.
func TestMemoryAfterLargeHeads(t *testing.T) {
	const connections, most = 30, 300 << 10
	for _, size := range []int{60_000, 1 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			w := newWorld(t, setup{})
			before := heapInUse()
			for range connections {
				client := newH2Peer(w.raw().Conn)
				_, _ = io.WriteString(client.Conn, http2.ClientPreface)
				_ = client.WriteSettings()
				client.split(1, []string{
					":method", "GET", ":scheme", "http", ":authority", "api.weather.example", ":path", "/x", "x", strings.Repeat("~", size),
				})
				if status, _, _ := client.answer(t, 1); !strings.HasPrefix(status, "4") {
					t.Fatalf("it is answered with %q", status)
				}
			}
			if kept := (heapInUse() - before) / connections; kept > most {
				t.Errorf("each connection keeps %d KiB", kept>>10)
			}
		})
	}
}

func heapInUse() int64 {
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}
