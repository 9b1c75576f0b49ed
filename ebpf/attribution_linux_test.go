package ebpf

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// segments is what a connection carried, as TCP itself counts it at the
// sidecar's end.
type segments struct{ in, out, bytesIn, bytesOut uint64 }

func carried(t *testing.T, conn net.Conn) segments {
	t.Helper()
	time.Sleep(100 * time.Millisecond) // for the last acknowledgement
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	if controlErr := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); controlErr != nil || err != nil {
		t.Fatal(controlErr, err)
	}
	return segments{uint64(info.Segs_in), uint64(info.Segs_out), info.Bytes_received, info.Bytes_sent}
}

// traffic is the sidecar's view turned around, with the headers of IPv4 and of
// TCP with timestamps.
func (s segments) traffic(rule uint32, since segments) Traffic {
	const headers = 20 + 32
	in, out := s.in-since.in, s.out-since.out
	return Traffic{
		Rule: rule, SentPackets: in, SentBytes: s.bytesIn - since.bytesIn + headers*in,
		ReceivedPackets: out, ReceivedBytes: s.bytesOut - since.bytesOut + headers*out,
	}
}

// Each byte counts for the rule that its connection has at the time, and for
// none when another connection took its place.
func TestTrafficByRule(t *testing.T) {
	r := newHarness(t, nil)
	done := r.start(&sandbox.Command{Args: []string{"python3", "-c", `
import socket
s = socket.create_connection(("240.0.0.9", 80))
while b := s.recv(1 << 16): s.sendall(b + b)
`}})
	conn, err := r.proxy4.Accept()
	if err != nil {
		t.Fatal(err)
	}
	peer, ok := r.Identify(conn)
	if !ok || peer.Cookie == 0 {
		t.Fatalf("%+v, %v", peer, ok)
	}
	exchange := func() (before, after segments) {
		before = carried(t, conn)
		for range 20 {
			answer := make([]byte, 0, 200)
			if _, err := conn.Write(make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
			for len(answer) < cap(answer) {
				n, err := conn.Read(answer[len(answer):cap(answer)])
				if err != nil {
					t.Fatal(err)
				}
				answer = answer[:len(answer)+n]
			}
		}
		return before, carried(t, conn)
	}
	all := func(want ...Traffic) {
		t.Helper()
		got, err := r.Traffic()
		if err != nil || len(got) != len(want) {
			t.Fatalf("%+v, %v, want %+v", got, err, want)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("%+v, want %+v", got[i], want[i])
			}
		}
	}
	exchange()
	all() // without an attribution
	r.Attribute(peer.Cookie, 7)
	before, after := exchange()
	seven := after.traffic(7, before)
	if seven.SentBytes < 20*200 || seven.ReceivedBytes < 20*100 {
		t.Errorf("TCP itself carried %+v", seven)
	}
	all(seven)
	r.Attribute(peer.Cookie, MaxRules-1)
	before, after = exchange()
	last := after.traffic(MaxRules-1, before)
	all(seven, last)
	r.Attribute(peer.Cookie+1<<attributionBits, 9) // its place is another one's now
	exchange()
	all(seven, last)
	r.Attribute(peer.Cookie, 7)
	before, after = exchange()
	again := after.traffic(7, before)
	seven.SentBytes += again.SentBytes
	seven.SentPackets += again.SentPackets
	seven.ReceivedBytes += again.ReceivedBytes
	seven.ReceivedPackets += again.ReceivedPackets
	all(seven, last)
	r.Attribute(peer.Cookie, MaxRules) // none
	exchange()
	all(seven, last)
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	r.ok(done())
}
