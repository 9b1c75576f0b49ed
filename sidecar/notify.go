package sidecar

import (
	"net"
	"os"
	"strings"
)

// notifyReady notifies the service manager that the sidecar is ready: READY=1 as
// a datagram to NOTIFY_SOCKET (sd_notify(3)). Without one it does nothing. A
// failure is noticed by the manager.
func notifyReady() {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	if rest, ok := strings.CutPrefix(name, "@"); ok {
		name = "\x00" + rest
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	_, _ = conn.Write([]byte("READY=1"))
}
