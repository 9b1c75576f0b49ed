package differential

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"time"
)

// addScripted serves HTTP/1.1 by hand: by path, what real servers are seen to do.
func addScripted(l *lab) {
	serve := func(conn net.Conn) {
		in := bufio.NewReader(conn)
		for {
			req, err := http.ReadRequest(in)
			if err != nil || !scripted(conn, in, req) {
				return
			}
		}
	}
	l.script(l.address("raw", "https", 443, "upgrades: [tcp, websocket]"), serve, "http/1.1")
	l.script(l.address("raw", "http", 80, "upgrades: [tcp, websocket]"), serve)
	reversed := func(conn net.Conn) {
		all, _ := io.ReadAll(conn) // until the client closes its half
		fmt.Fprintf(conn, "you sent %d bytes", len(all))
		abortOrClose(conn)
	}
	l.script(l.address("half", "tcp", 7), reversed)
	l.script(l.address("half-tls", "tls", 443), reversed, "anything")
	l.script(l.address("greets", "tcp", 25), func(conn net.Conn) {
		fmt.Fprint(conn, "220 greetings\r\n")
		all, _ := io.ReadAll(conn) // as above
		fmt.Fprintf(conn, "you sent %d bytes", len(all))
	})
}

// abortOrClose closes the sending half, after which the other side reads to its end.
func abortOrClose(conn net.Conn) {
	switch conn := conn.(type) {
	case *tls.Conn:
		_ = conn.CloseWrite() // it may be gone
	case *net.TCPConn:
		_ = conn.CloseWrite() // as above
	}
}

// scripted answers one request, and reports whether the connection goes on.
func scripted(conn net.Conn, in *bufio.Reader, req *http.Request) bool {
	say := func(text string) { _, _ = io.WriteString(conn, strings.ReplaceAll(text, "\n", "\r\n")) } // it shows in the client
	switch req.URL.Path {
	case "/early": // answers, and reads on for a while so that the answer arrives
		say("HTTP/1.1 413 Content Too Large\nContent-Length: 9\nConnection: close\n\ntoo large")
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second)) // it may be gone
		_, _ = io.Copy(io.Discard, in)
		return false
	case "/reset":
		abort(conn)
		return false
	case "/reset-while-sending":
		_, _ = io.CopyN(io.Discard, in, 1000)
		abort(conn)
		return false
	case "/nothing":
		return false
	case "/garbage":
		say("SSH-2.0-this is another protocol\n\n")
		return false
	case "/cut-known":
		say("HTTP/1.1 200 OK\nContent-Length: 100\n\nonly this")
		return false
	case "/cut-chunked":
		say("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n9\nonly this\n")
		return false
	case "/reset-known":
		say("HTTP/1.1 200 OK\nContent-Length: 100\n\nonly this")
		time.Sleep(300 * time.Millisecond)
		abort(conn)
		return false
	case "/ended":
		say("HTTP/1.1 200 OK\n\nends with the connection")
		return false
	case "/http10":
		say("HTTP/1.0 200 OK\n\nends with the connection")
		return false
	case "/silent": // no answer at all
		_, _ = io.Copy(io.Discard, in)
		return false
	case "/upgrade":
		return upgraded(conn, in, req)
	}
	_, _ = io.Copy(io.Discard, req.Body)
	answer, found := map[string]string{
		"/hints":      "HTTP/1.1 103 Early Hints\nLink: </a>; rel=preload\n\nHTTP/1.1 102 Processing\n\nHTTP/1.1 200 OK\nContent-Length: 4\n\ndone",
		"/204-body":   "HTTP/1.1 204 No Content\nContent-Length: 4\nX-Origin: raw\n\n",
		"/204-bytes":  "HTTP/1.1 204 No Content\nConnection: close\n\nbytes that nobody is to see",
		"/trailers":   "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\nTrailer: X-Sum\n\n4;ext=1\nbody\n0\nX-Sum: abc\nX-Other: def\n\n",
		"/latin":      "HTTP/1.1 200 Sch\xf6n\nContent-Length: 2\nX-Latin: gr\xfc\xdfe\nX-Utf: gr\u00fc\u00dfe\n\nok",
		"/lines":      "HTTP/1.1 200 OK\nContent-Length: 2\nX-Folded: one\n two\n\nok",
		"/999":        "HTTP/1.1 999 Odd\nContent-Length: 2\n\nok",
		"/head-large": "HTTP/1.1 200 OK\nContent-Length: 2\n" + strings.Repeat("X-Large: "+strings.Repeat("l", 1000)+"\n", 40) + "\nok",
		"/same-twice": "HTTP/1.1 200 OK\nContent-Length: 2\nContent-Length: 2\n\nok",
	}[req.URL.Path]
	if !found {
		answer = "HTTP/1.1 200 OK\nContent-Length: 2\n\nok"
	}
	say(answer)
	return req.URL.Path != "/204-bytes"
}

// upgraded takes an upgrade to tcp, as container engines do, and returns the number of bytes
// until the client closed its half. Any other protocol is ignored.
func upgraded(conn net.Conn, in *bufio.Reader, req *http.Request) bool {
	if req.Header.Get("Upgrade") != "tcp" {
		dump, _ := httputil.DumpRequest(req, true)
		fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nX-Offered: %t\r\n\r\nignored", strings.Contains(string(dump), "\nUpgrade:"))
		return true
	}
	fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	n, _ := io.Copy(io.Discard, in) // until the client closes its half
	fmt.Fprintf(conn, "you sent %d bytes", n)
	abortOrClose(conn)
	return false
}
