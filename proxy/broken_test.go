package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
)

// TestAnswerThatBreaksOff checks that the part of an answer that an upstream sent before
// it closed the connection reaches the plugin, and looks incomplete.
func TestAnswerThatBreaksOff(t *testing.T) {
	server := tcpServer(t, func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nnine byte")
		}
		_ = c.Close()
	})
	r := tcpRule(server, authz.SchemeHTTP, "api.weather.example")
	r.Methods, r.Paths = []string{"GET"}, []string{"/**"}
	w := newWorld(t, setup{input: granted(r)})
	for range 10 {
		response, err := w.client(nil).Get(fmt.Sprintf("http://api.weather.example:%d/", server.Port()))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if response.StatusCode != http.StatusOK || string(body) != "nine byte" || err == nil {
			t.Fatalf("%s, %q, %v", response.Status, body, err)
		}
	}
}
