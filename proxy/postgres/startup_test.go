package postgres

import (
	"encoding/binary"
	"io"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

func TestStartupParametersAreGrantedByName(t *testing.T) {
	for _, tc := range []struct {
		name, state, message string
		parameters           []string
	}{
		{"replication", statePrivilege, "replication is never granted", []string{"replication", "database"}},
		{"search path", statePrivilege, "search_path is not granted", []string{"search_path", "evil"}},
		{"search path in options", statePrivilege, "search_path is not granted", []string{"options", "-c search_path=evil"}},
		{"search path in long options", statePrivilege, "search_path is not granted", []string{"options", "--search-path=evil"}},
		{"role in escaped options", statePrivilege, "role is not granted", []string{"options", `-c\ role=x -crole=x`}},
		{"other options", statePrivilege, "options other than", []string{"options", "-d 5"}},
		{"encoding", stateInvalidParameter, "client_encoding SJIS is not granted", []string{"client_encoding", "SJIS"}},
		{"strings", statePrivilege, "standard_conforming_strings is not granted", []string{"standard_conforming_strings", "off"}},
		{"session authorization", statePrivilege, "session_authorization is not granted", []string{"session_authorization", "postgres"}},
		{"terminal", statePrivilege, `is not granted`, []string{"\x1b[2J\n", "x"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			packet, err := readPacket(strings.NewReader(string(startupPacket(protocol30, append([]string{"user", "x"}, tc.parameters...)...))))
			testenv.Must(t, err)
			_, err = readStartup(packet)
			bad, ok := err.(*startupError) //nolint:errorlint // not wrapped
			if !ok || bad.state != tc.state || !strings.Contains(bad.detail, tc.message) || strings.ContainsAny(bad.detail, "\x1b\n") {
				t.Fatalf("refused with %+v, want %s with %q", err, tc.state, tc.message)
			}
		})
	}
}

func TestStartupTakesHarmlessSettings(t *testing.T) {
	packet, err := readPacket(strings.NewReader(string(startupPacket(protocol30, "user", "x", "application_name", "app", "client_encoding", "'UTF-8'",
		"options", `-c statement_timeout=5s --lock-timeout=1s -c application_name=my\ app`, "DateStyle", "ISO", "replication", "off", "search_path", ""))))
	testenv.Must(t, err)
	if _, err = readStartup(packet); err == nil {
		t.Fatal("an empty search_path was granted")
	}
	packet, err = readPacket(strings.NewReader(string(startupPacket(protocol30, "user", "x", "application_name", "app", "client_encoding", "UTF-8",
		"options", `-c statement_timeout=5s --lock-timeout=1s -c application_name=my\ app`, "DateStyle", "ISO", "replication", "off"))))
	testenv.Must(t, err)
	s, err := readStartup(packet)
	testenv.Must(t, err)
	pins := s.pins(true)
	for setting, want := range map[string]string{
		"statement_timeout": "5s", "lock_timeout": "1s", "application_name": "my app", "datestyle": "ISO", settingEncoding: "UTF8",
		settingSearchPath: "pg_catalog, public", settingStrings: "on", settingReadOnly: "on",
	} {
		if pins[setting] != want {
			t.Errorf("%s is %q, want %q", setting, pins[setting], want)
		}
	}
	if len(pins) != 8 || s.database != "x" {
		t.Errorf("the session has %v at %q", pins, s.database)
	}
}

func TestNegotiationOfEncryption(t *testing.T) {
	_, to := sharedServer(t)
	w := newWorld(t, to, readOrders())
	ssl, gss := encode(&pgproto3.SSLRequest{}), encode(&pgproto3.GSSEncRequest{})
	ask := func(c *wire, request []byte, want byte) {
		c.send(request)
		var answer [1]byte
		if _, err := io.ReadFull(c.conn, answer[:]); err != nil || answer[0] != want {
			t.Fatalf("answered %q, %v, want %q", answer, err, want)
		}
	}
	begin := startupPacket(protocol30, "user", "anyone", "database", databaseName)
	t.Run("TLS after GSSAPI", func(t *testing.T) {
		c := w.dial()
		ask(c, gss, 'N')
		ask(c, ssl, 'S')
		testenv.Must(t, c.startTLS(w, alpn))
		c.begin(begin)
		if got := c.query("SELECT 1"); got[1].kind != msgDataRow {
			t.Fatalf("answered %v", got)
		}
	})
	t.Run("direct TLS", func(t *testing.T) {
		c := w.dial()
		testenv.Must(t, c.startTLS(w, alpn))
		c.begin(begin)
		c.query("SELECT 1")
	})
	t.Run("direct TLS without ALPN", func(t *testing.T) {
		c := w.dial()
		testenv.Must(t, c.startTLS(w))
		c.expectFatal(stateProtocolViolation, "must negotiate the protocol postgresql")
	})
	t.Run("TLS twice", func(t *testing.T) {
		c := w.dial()
		ask(c, ssl, 'S')
		testenv.Must(t, c.startTLS(w, alpn))
		c.send(ssl)
		c.expectFatal(stateProtocolViolation, "came twice")
	})
	t.Run("GSSAPI twice", func(t *testing.T) {
		c := w.dial()
		ask(c, gss, 'N')
		c.send(gss)
		c.expectFatal(stateProtocolViolation, "came twice")
	})
	t.Run("a query behind the request", func(t *testing.T) {
		c := w.dial()
		c.send(append(append([]byte(nil), ssl...), encode(&pgproto3.Query{String: "SELECT 1"})...))
		c.expectFatal(stateProtocolViolation, "with data behind it")
	})
	t.Run("HTTP", func(t *testing.T) {
		c := w.dial()
		c.send([]byte("GET / HTTP/1.1\r\n\r\n"))
		c.expectFatal(stateProtocolViolation, "does not begin with a startup packet")
	})
	t.Run("a name that servers cut", func(t *testing.T) {
		c := w.dial()
		c.send(startupPacket(protocol30, "user", "x", "database", strings.Repeat("x", 64)))
		c.expectFatal(stateInvalidCatalog, "64 bytes; no database has more than 63")
	})
	t.Run("protocol 2", func(t *testing.T) {
		c := w.dial()
		c.send(startupPacket(2<<16, "user", "x"))
		c.expectFatal(stateFeatureNotSupported, "protocol 2.0 is not spoken")
	})
	for _, refusal := range w.refused() {
		if refusal.Reason != authz.MalformedRequest {
			t.Errorf("refused for %v", refusal)
		}
	}
}

func TestProtocolVersionsAndCancelKeys(t *testing.T) {
	_, to := sharedServer(t)
	w := newWorld(t, to, readOrders())
	for _, tc := range []struct {
		name    string
		version uint32
		options []string
		key     int    // of the body of BackendKeyData
		newest  uint32 // version in NegotiateProtocolVersion, with the major one, as servers and libpq have it; 0 for none
	}{
		{"3.0", protocol30, nil, 8, 0},
		{"3.2", protocol32, nil, 36, 0},
		{"3.9999", 3<<16 | 9999, nil, 36, protocol32},
		{"an option", protocol32, []string{"_pq_.shiny", "1"}, 36, protocol32},
		{"an option of 3.0", protocol30, []string{"_pq_.shiny", "1"}, 8, protocol30},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := w.dial()
			begun := c.begin(startupPacket(tc.version, append([]string{"user", "x", "database", databaseName}, tc.options...)...))
			newest := uint32(0)
			if begun[0].kind == 'v' {
				newest = binary.BigEndian.Uint32(begun[0].body)
			}
			if len(c.key) != tc.key || newest != tc.newest {
				t.Fatalf("the key has %d bytes, the newest version is %#x", len(c.key), newest)
			}
			c.query("SELECT 1")
		})
	}
}

// The server takes what a startup packet sets as the default of the session.
func TestPinsOutliveReset(t *testing.T) {
	_, to := sharedServer(t)
	read := rule("read", "verb:select", "table:public.orders", "table:catalog", "function:pg_catalog.current_setting")
	w := newWorld(t, to, read)
	for _, text := range []string{"DISCARD ALL", "RESET ALL", "RESET default_transaction_read_only", "RESET search_path"} {
		c := w.open()
		c.query(text)
		for setting, want := range map[string]string{
			settingReadOnly: "on", settingSearchPath: "pg_catalog, public", settingStrings: "on", settingEncoding: "UTF8",
		} {
			got := c.query("SHOW " + setting)
			if got[1].kind != msgDataRow || !strings.HasSuffix(string(got[1].body), want) {
				t.Errorf("after %s, %s is %v, want %s", text, setting, got, want)
			}
		}
	}
}
