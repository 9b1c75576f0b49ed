package testenv

import (
	"errors"
	"net"
	"testing"
	"time"
)

// Patience bounds how long [Eventually] waits on a loaded machine.
const Patience = 2 * time.Minute

// Eventually polls until f reports that something holds, and returns its value. The
// test fails with what was waited for when it does not within [Patience].
func Eventually[T any](t testing.TB, what string, f func() (T, bool)) T {
	t.Helper()
	for deadline := time.Now().Add(Patience); ; time.Sleep(10 * time.Millisecond) {
		value, ok := f()
		if ok {
			return value
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", Patience, what)
		}
	}
}

// CutOff waits until the peer resets or closes a connection without sending anything.
func CutOff(t testing.TB, conn net.Conn) {
	t.Helper()
	Must(t, conn.SetReadDeadline(time.Now().Add(Patience)))
	var timeout net.Error
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("connection is open, want it cut: read %d bytes, %v", n, err)
	}
}
