package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/grpclog"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// talkers answer a request and send more, with the credential in it, which
// net/http prints by itself: all of these are "Unsolicited response received on
// idle HTTP channel".
var talkers = map[string]struct{ answer, more string }{
	"behind a 204":               {"HTTP/1.1 204 No Content\r\n\r\n", "and you sent CREDENTIAL"},
	"behind a 304":               {"HTTP/1.1 304 Not Modified\r\n\r\n", "CREDENTIAL"},
	"behind a complete 200":      {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "CREDENTIAL"},
	"behind the last chunk":      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "CREDENTIAL"},
	"a second answer":            {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\nX-You-Sent: CREDENTIAL\r\nContent-Length: 0\r\n\r\n"},
	"a timeout":                  {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 408 CREDENTIAL\r\n\r\n"},
	"in place of an answer":      {"", "CREDENTIAL\r\n\r\n"},
	"in the status":              {"", "HTTP/1.1 CREDENTIAL\r\n\r\n"},
	"in a header without colon":  {"", "HTTP/1.1 200 OK\r\nCREDENTIAL\r\n\r\n"},
	"in a coding nobody has":     {"", "HTTP/1.1 200 OK\r\nTransfer-Encoding: CREDENTIAL\r\n\r\n"},
	"in the length":              {"", "HTTP/1.1 200 OK\r\nContent-Length: CREDENTIAL\r\n\r\n"},
	"in the length of a chunk":   {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "CREDENTIAL\r\n"},
	"in a trailer without colon": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", "CREDENTIAL\r\n\r\n"},
}

// TestLibrariesPrintNothing checks that nothing that an upstream says reaches
// standard error, the credential in it least of all.
func TestLibrariesPrintNothing(t *testing.T) {
	w := newEnv(t, "off", "")
	pair := testenv.MustGet(w.API.CA.Issue(scenario.Host))(t)
	listener := testenv.MustGet(tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}))(t)
	defer listener.Close()
	names := make(chan string, len(talkers))
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go talk(conn, names)
		}
	}()
	w.Write("grant.yaml", strings.ReplaceAll(w.Read("grant.yaml"), fmt.Sprint(w.API.Addr.Port()), fmt.Sprint(listener.Addr().(*net.TCPAddr).Port)))
	url := fmt.Sprintf("https://%s:%d/v1/", scenario.Host, listener.Addr().(*net.TCPAddr).Port)
	var script strings.Builder
	for name := range talkers {
		fmt.Fprintf(&script, "curl -s -m 10 -o /dev/null '%s%s'; ", url, strings.ReplaceAll(name, " ", "-"))
	}
	r := w.Run("sh", "-c", script.String()+"sleep 0.3")
	if len(names) != len(talkers) {
		t.Errorf("%d requests of %d reached the upstream: %s", len(names), len(talkers), r.Stderr)
	}
	for _, text := range []string{w.API.Token(), "Unsolicited", "you sent"} {
		if strings.Contains(r.Stderr, text) {
			t.Errorf("standard error holds %q: %s", text, r.Stderr)
		}
	}
	for line := range strings.Lines(r.Stderr) {
		if !strings.HasPrefix(line, "chaperone: ") && !strings.HasPrefix(line, "  ") {
			t.Errorf("a line is not the sidecar's own: %q", line)
		}
	}
}

// talk plays the upstream on one connection.
func talk(conn net.Conn, names chan<- string) {
	defer conn.Close()
	r, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return
	}
	name := strings.ReplaceAll(strings.TrimPrefix(r.URL.Path, "/v1/"), "-", " ")
	what, ok := talkers[name]
	if !ok {
		return
	}
	text := what.answer + strings.ReplaceAll(what.more, "CREDENTIAL", r.Header.Get("Authorization"))
	if _, err := conn.Write([]byte(text)); err != nil {
		return
	}
	names <- name
	time.Sleep(200 * time.Millisecond) // or the end would be met in place of the bytes
}

// TestMuteLibraries checks the loggers that libraries use when nothing gives
// them one.
func TestMuteLibraries(t *testing.T) {
	before, stderr := log.Writer(), os.Stderr
	r, w, err := os.Pipe()
	testenv.Must(t, err)
	os.Stderr = w
	defer func() { os.Stderr = stderr; log.SetOutput(before) }()
	muteLibraries()
	log.Print("standard logger")
	slog.Error("structured logger") //nolint:sloglint // the default one is what is tested
	grpclog.Errorf("gRPC's logger")
	testenv.Must(t, w.Close())
	text := make([]byte, 256)
	if n, _ := r.Read(text); n > 0 {
		t.Errorf("standard error holds %q", text[:n])
	}
}
