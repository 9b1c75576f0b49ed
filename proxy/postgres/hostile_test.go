package postgres

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// recordingServer is a server that is not a database. It records what it is sent, inside TLS.
type recordingServer struct {
	listener net.Listener
	ca       *testenv.CA
	serving  sync.WaitGroup

	mu       sync.Mutex
	received bytes.Buffer
	conns    []net.Conn
}

// Write records.
func (s *recordingServer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.received.Len() > 1<<20 {
		return len(b), nil
	}
	return s.received.Write(b)
}

func (s *recordingServer) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.received.String()
}

// startRecording starts a server that answers an SSLRequest, accepts TLS if that is S,
// records what comes, and speaks.
func startRecording(t testing.TB, answer string, speak func(s *recordingServer, conn net.Conn)) (*recordingServer, target) {
	return startServer(t, answer, func(s *recordingServer, conn net.Conn, startup packet) {
		_, _ = s.Write(startup.body)
		var reading sync.WaitGroup
		reading.Go(func() { _, _ = io.Copy(s, conn) })
		speak(s, conn)
		reading.Wait()
	})
}

// startFilter starts a server that is the real one, but for what filter makes of each of its
// messages. The relation between the two is a Unix socket, where the server offers no channel
// binding.
func startFilter(t testing.TB, db *testenv.Postgres, filter func(frame []byte) []byte) target {
	_, to := startServer(t, "S", func(_ *recordingServer, conn net.Conn, startup packet) {
		up, err := net.Dial("unix", fmt.Sprintf("%s/.s.PGSQL.%d", db.SocketDir, db.Addr.Port()))
		if err != nil {
			return
		}
		defer up.Close()
		_, _ = up.Write(startupPacketOf(startup))
		var reading sync.WaitGroup
		reading.Go(func() {
			_, _ = io.Copy(up, conn)
			_ = up.Close()
		})
		c := &wire{conn: up}
		for {
			f, err := c.next()
			if err != nil {
				break
			}
			if _, err := conn.Write(filter(raw(f.kind, f.body...))); err != nil {
				break
			}
		}
		_ = conn.Close()
		reading.Wait()
	})
	return to
}

// startupPacketOf returns the bytes of a startup packet.
func startupPacketOf(p packet) []byte {
	head := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, uint32(len(p.body)+8)), p.code)
	return append(head, p.body...)
}

func startServer(t testing.TB, answer string, speak func(s *recordingServer, conn net.Conn, startup packet)) (*recordingServer, target) {
	t.Helper()
	s := &recordingServer{}
	var err error
	s.ca, err = testenv.NewCA("server")
	testenv.Must(t, err)
	certificate, err := s.ca.Issue(host)
	testenv.Must(t, err)
	s.listener, err = net.Listen("tcp", "127.0.0.1:0")
	testenv.Must(t, err)
	s.serving.Go(func() {
		for {
			conn, err := s.listener.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns = append(s.conns, conn)
			s.mu.Unlock()
			s.serving.Go(func() {
				defer conn.Close()
				s.serve(conn, answer, &certificate, speak)
			})
		}
	})
	t.Cleanup(func() {
		_ = s.listener.Close()
		s.mu.Lock()
		for _, conn := range s.conns {
			_ = conn.Close()
		}
		s.mu.Unlock()
		s.serving.Wait()
	})
	return s, target{uint16(s.listener.Addr().(*net.TCPAddr).Port), string(s.ca.PEM()), "v_crm", rolePassword} //nolint:forcetypeassert // of a TCP listener
}

func (s *recordingServer) serve(conn net.Conn, answer string, certificate *tls.Certificate, speak func(*recordingServer, net.Conn, packet)) {
	var request [8]byte
	if _, err := io.ReadFull(conn, request[:]); err != nil {
		return
	}
	if _, err := io.WriteString(conn, answer); err != nil {
		return
	}
	if answer != "S" {
		_, _ = io.Copy(s, conn)
		return
	}
	inner := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{*certificate}, MinVersion: tls.VersionTLS12})
	if inner.Handshake() != nil {
		return
	}
	startup, err := readPacket(inner)
	if err != nil {
		return
	}
	speak(s, inner, startup)
	_ = inner.Close()
}

// reply returns messages of a server.
func reply(messages ...pgproto3.BackendMessage) []byte {
	var out []byte
	for _, m := range messages {
		var err error
		if out, err = m.Encode(out); err != nil {
			panic(err)
		}
	}
	return out
}

// settingsOf are what a server reports when a session begins.
func settingsOf() []pgproto3.BackendMessage {
	return []pgproto3.BackendMessage{
		&pgproto3.ParameterStatus{Name: settingEncoding, Value: "UTF8"}, &pgproto3.ParameterStatus{Name: settingStrings, Value: "on"},
	}
}

func TestServerThatIsNotADatabaseGetsNoPassword(t *testing.T) {
	ready := reply(append(append([]pgproto3.BackendMessage{&pgproto3.AuthenticationOk{}}, settingsOf()...), &pgproto3.ReadyForQuery{TxStatus: 'I'})...)
	sasl := reply(&pgproto3.AuthenticationSASL{AuthMechanisms: []string{"SCRAM-SHA-256"}})
	forever := func(b []byte) func(*recordingServer, net.Conn) {
		return func(_ *recordingServer, c net.Conn) {
			for {
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		}
	}
	once := func(b []byte) func(*recordingServer, net.Conn) {
		return func(_ *recordingServer, c net.Conn) { _, _ = c.Write(b) }
	}
	for _, tc := range []struct {
		name, answer, message string
		speak                 func(*recordingServer, net.Conn)
	}{
		{"no TLS", "N", "offers no TLS", nil},
		{"an error in place of TLS", "E", "offers no TLS", nil},
		{"cleartext", "S", "does not ask for SCRAM", once(reply(&pgproto3.AuthenticationCleartextPassword{}))},
		{"MD5", "S", "does not ask for SCRAM", once(reply(&pgproto3.AuthenticationMD5Password{Salt: [4]byte{1}}))},
		{"GSSAPI", "S", "does not ask for SCRAM", once(reply(&pgproto3.AuthenticationGSS{}))},
		{"no authentication", "S", "does not ask for SCRAM", once(ready)},
		{"ready before authentication", "S", "", once(reply(&pgproto3.ReadyForQuery{TxStatus: 'I'}))},
		{"an unknown mechanism", "S", "SCRAM", once(reply(&pgproto3.AuthenticationSASL{AuthMechanisms: []string{"PLAIN"}}))},
		{"endless SASL", "S", "", forever(sasl)},
		{"a continuation of another", "S", "", func(s *recordingServer, c net.Conn) {
			_, _ = c.Write(sasl)
			forever(reply(&pgproto3.AuthenticationSASLContinue{Data: []byte("r=x,s=eA==,i=4096")}))(s, c)
		}},
		{"a billion iterations", "S", "SCRAM", func(s *recordingServer, c net.Conn) {
			_, _ = c.Write(sasl)
			nonce := ""
			for range 1000 {
				if _, after, ok := strings.Cut(s.text(), "n=,r="); ok {
					nonce = after
					break
				}
				time.Sleep(time.Millisecond)
			}
			_, _ = c.Write(reply(&pgproto3.AuthenticationSASLContinue{Data: []byte("r=" + nonce + "x,s=eA==,i=1000000000")}))
		}},
		{"settings without an end", "S", "does not speak the protocol", forever(reply(&pgproto3.ParameterStatus{Name: "a", Value: strings.Repeat("x", 1000)}))},
		{"a notice without an end", "S", "does not speak the protocol", once(append([]byte{'N', 0x3f, 0xff, 0xff, 0xff}, make([]byte, 1<<20)...))},
		{"a frame of length 3", "S", "does not speak the protocol", once([]byte{'R', 0, 0, 0, 3})},
		{"HTTP", "S", "", once([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))},
		{"an end", "S", "", func(_ *recordingServer, c net.Conn) { _ = c.Close() }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			server, to := startRecording(t, tc.answer, tc.speak)
			w := newWorld(t, to, readOrders())
			before := heap()
			c := w.dial()
			c.send(startupPacket(protocol30, "user", "x", "database", databaseName))
			c.expectFatal(stateConnectionFailure, tc.message)
			if grown := int64(heap()) - int64(before); grown > 8<<20 {
				t.Errorf("the heap grew by %d bytes", grown)
			}
			if sent := server.text(); strings.Contains(sent, rolePassword) || strings.Contains(sent, "md5") {
				t.Errorf("the server was sent the password: %q", sent)
			}
			if strings.Contains(w.refused()[0].Detail, rolePassword) || w.refused()[0].Reason != authz.UpstreamUnreachable {
				t.Errorf("refused with %+v", w.refused())
			}
		})
	}
}

func TestServerWithoutACancelKey(t *testing.T) {
	db, _ := sharedServer(t)
	w := newWorld(t, startFilter(t, db, func(frame []byte) []byte {
		if frame[0] == 'K' {
			return nil
		}
		return frame
	}), readOrders())
	c := w.open()
	if c.key != nil {
		t.Fatalf("the plugin was given the key %x", c.key)
	}
	if got := c.query("SELECT 1"); got[1].kind != msgDataRow {
		t.Fatalf("answered %v", got)
	}
}

// A server whose messages do not belong into a session ends it, with a reason.
func TestMessagesOfTheServerThatEndTheSession(t *testing.T) {
	db, _ := sharedServer(t)
	for _, tc := range []struct {
		name, message string
		instead       []byte // of a CommandComplete
	}{
		{"client_encoding", "client_encoding changed", reply(&pgproto3.ParameterStatus{Name: settingEncoding, Value: "SJIS"})},
		{"standard_conforming_strings", "standard_conforming_strings changed", reply(&pgproto3.ParameterStatus{Name: settingStrings, Value: "off"})},
		{"a password", "0x52", reply(&pgproto3.AuthenticationCleartextPassword{})},
		{"replication", "0x57", reply(&pgproto3.CopyBothResponse{})},
		{"another key", "0x4b", reply(&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte{1, 2, 3, 4}})},
		{"length 3", "out of range", []byte{'D', 0, 0, 0, 3}},
		{"length 2^30", "out of range", []byte{'D', 0x40, 0, 0, 0}},
		{"a ReadyForQuery of 2 bytes", "ReadyForQuery", raw(msgReadyForQuery, 'I', 'I')},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, startFilter(t, db, func(frame []byte) []byte {
				if frame[0] == msgCommandComplete {
					return tc.instead
				}
				return frame
			}), readOrders())
			for _, c := range []*wire{w.open(), w.openTLS()} {
				c.send(encode(&pgproto3.Query{String: "SELECT 1"}))
				c.expectFatal(stateAdminShutdown, tc.message)
			}
		})
	}
}

// Pins that the server does not keep, as a pooler, end the login.
func TestServerThatDoesNotKeepThePins(t *testing.T) {
	db, _ := sharedServer(t)
	for name, want := range map[string]string{settingEncoding: "UTF8", settingStrings: "standard_conforming_strings"} {
		w := newWorld(t, startFilter(t, db, func(frame []byte) []byte {
			if bytes.Contains(frame, []byte(name+"\x00")) {
				return nil
			}
			return frame
		}), readOrders())
		c := w.dial()
		c.send(startupPacket(protocol30, "user", "x", "database", databaseName))
		c.expectFatal(stateConnectionFailure, want)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
