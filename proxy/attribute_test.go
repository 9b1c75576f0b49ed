package proxy_test

import (
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// attributions keeps what a proxy attributes to each socket.
type attributions struct {
	mu   sync.Mutex
	said map[uint64][]string
}

func (a *attributions) take(cookie uint64, grant, rule string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.said[cookie] = append(a.said[cookie], grant+"/"+rule)
}

// of returns what was attributed to a socket.
func (a *attributions) of(cookie uint64) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.said[cookie])
}

// attributed returns a change of a config after which every connection has a
// cookie of its own, from 1 on, and what is attributed to them.
func attributed() (*attributions, func(*proxy.Config)) {
	a := &attributions{said: make(map[uint64][]string)}
	next := make(chan uint64, 1)
	next <- 1
	return a, func(cfg *proxy.Config) {
		cfg.Attribute = a.take
		cfg.Identify = func(net.Conn) (session.Peer, bool) {
			cookie := <-next
			next <- cookie + 1
			return session.Peer{Cookie: cookie}, true
		}
	}
}

func TestBytesAreAttributedToTheRuleThatBeganLast(t *testing.T) {
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(protocol, func(t *testing.T) {
			api := upstream(t, testenv.UpstreamConfig{})
			read, write := rule(api, "read"), rule(api, "write")
			read.Methods, write.Methods = []string{"GET"}, []string{"POST"}
			said, config := attributed()
			w := newWorld(t, setup{input: granted(read, write), config: config})
			client := w.client(nil)
			if protocol == "HTTP/2.0" {
				client = w.client(withHTTP2)
			}
			for _, method := range []string{"GET", "POST", "DELETE", "GET"} {
				response, _ := send(t, client, request(t, method, api.URL("api.weather.example", "/echo"), ""))
				if response.Proto != protocol {
					t.Errorf("the answer is %s", response.Proto)
				}
			}
			want := []string{"weather/read", "weather/write", "/", "weather/read"}
			if got := said.of(1); !slices.Equal(got, want) {
				t.Errorf("attributed %v, want %v", got, want)
			}
		})
	}
}

func TestTunnelIsAttributedOnce(t *testing.T) {
	server := tcpServer(t, greeter)
	said, config := attributed()
	w := newWorld(t, setup{input: granted(tcpRule(server, authz.SchemeTCP, "api.weather.example")), config: config})
	speak(t, w.tunnel(fmt.Sprintf("api.weather.example:%d", server.Port())))
	if got, want := said.of(1), []string{"weather/tcp"}; !slices.Equal(got, want) {
		t.Errorf("attributed %v, want %v", got, want)
	}
}
