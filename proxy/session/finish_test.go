package session

import (
	"bytes"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// fullPair returns the two ends of a TCP connection of which the first has sent more than the
// second, which has not read yet, can receive; and what was sent.
func fullPair(t *testing.T) (sender, receiver *net.TCPConn, sent []byte) {
	t.Helper()
	listener := testenv.MustGet(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer listener.Close()
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) })
	}}
	a := testenv.MustGet(dialer.Dial("tcp", listener.Addr().String()))(t)
	b := testenv.MustGet(listener.Accept())(t)
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	sender, receiver = b.(*net.TCPConn), a.(*net.TCPConn)
	testenv.Must(t, sender.SetWriteBuffer(1<<20))
	sent = bytes.Repeat([]byte("data "), 20_000)
	if n, err := SendNow(sender, sent); err != nil {
		t.Fatalf("%d bytes were sent: %v", n, err)
	}
	_, err := receiver.Write([]byte("what nobody reads")) // an end with it unread would be a reset
	testenv.Must(t, err)
	return sender, receiver, sent
}

// The other end, which is late, reads all that was sent and then the end of the connection.
func TestFinishSending(t *testing.T) {
	sender, receiver, sent := fullPair(t)
	if !EndWritesIfUnsent(sender) {
		t.Fatal("everything has been received")
	}
	if _, err := SendNow(sender, []byte("more")); err == nil {
		t.Error("more was sent")
	}
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		FinishSending(sender, nil)
	}()
	if got, err := io.ReadAll(receiver); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes were read, %v, want %d", len(got), err, len(sent))
	}
	<-finished
	if EndWritesIfUnsent(sender) {
		t.Error("a connection that has ended is ended once more")
	}
}

// The rest is sent behind what was sent before, as the other end reads, also a rest that the kernel does
// not take at once.
func TestFinishSendingSendsTheRest(t *testing.T) {
	for _, size := range []int{1, 2 << 20} {
		sender, receiver, sent := fullPair(t)
		rest := bytes.Repeat([]byte("r"), size)
		finished := make(chan struct{})
		go func() {
			defer close(finished)
			FinishSending(sender, rest)
		}()
		got, err := io.ReadAll(receiver)
		if err != nil || !bytes.Equal(got, append(sent, rest...)) {
			t.Errorf("%d bytes were read, %v, want %d", len(got), err, len(sent)+len(rest))
		}
		<-finished
	}
}

// An end that does not read is reset after a while, however much it sends.
func TestFinishSendingToNobody(t *testing.T) {
	sender, receiver, sent := fullPair(t)
	if !EndWritesIfUnsent(sender) {
		t.Fatal("everything has been received")
	}
	written := make(chan error, 1)
	go func() {
		_, err := receiver.Write(make([]byte, 8<<20))
		written <- err
	}()
	begun := time.Now()
	FinishSending(sender, nil)
	if took := time.Since(begun); took < finishSendingPatience || took > 10*finishSendingPatience {
		t.Errorf("it took %v", took)
	}
	got, err := io.ReadAll(receiver)
	if err = errors.Join(err, <-written); len(got) >= len(sent) || !errors.Is(err, syscall.ECONNRESET) { // one of them reads it
		t.Errorf("%d bytes of %d were read, then %v", len(got), len(sent), err)
	}
}

// A connection whose other end has all that was sent is left to AbortConn.
func TestEndWritesIfUnsentAfterReceipt(t *testing.T) {
	sender, receiver, sent := fullPair(t)
	_, err := io.ReadFull(receiver, make([]byte, len(sent)))
	testenv.Must(t, err)
	testenv.Eventually(t, "the receipt", func() (bool, bool) {
		left := true
		control(sender, func(fd int) { left = queued(fd, unix.TIOCOUTQ) })
		return true, !left
	})
	if EndWritesIfUnsent(sender) {
		t.Error("its writing direction was ended")
	}
	if inner, other := net.Pipe(); EndWritesIfUnsent(inner) || other.Close() != nil {
		t.Error("a pipe was ended")
	}
}
