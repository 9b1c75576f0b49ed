package proxy_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy"
)

// half is how a test ends its direction of a connection.
type half interface{ CloseWrite() error }

// answer reads the final answer to a request.
func (c *rawConn) answer(method string) (*http.Response, string, error) {
	for {
		response, err := http.ReadResponse(c.in, &http.Request{Method: method})
		if err != nil {
			return nil, "", err
		}
		if response.StatusCode < 200 {
			continue
		}
		body, err := io.ReadAll(response.Body)
		return response, string(body), err
	}
}

// rude is an origin that handles a request's head as its path specifies.
func rude(c *originConn) {
	r := c.head()
	if r == nil {
		return
	}
	switch r.URL.Path {
	case "/granted/resets":
		c.reset()
		return
	case "/granted/ends":
		return
	case "/granted/garbage":
		c.say("this is no answer\r\n\r\n")
	case "/granted/hints-then-ends":
		c.say("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
		return
	case "/granted/413-and-resets":
		c.say("HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\nConnection: close\r\n\r\ntoo large")
		time.Sleep(20 * time.Millisecond) // the proxy reads the answer before the reset
		c.reset()
		return
	case "/granted/413":
		c.say("HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\nConnection: close\r\n\r\ntoo large")
	case "/granted/413-open":
		c.say("HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\n\r\ntoo large")
	case "/granted/413-chunked":
		c.say("HTTP/1.1 413 Too Large\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ntoo large\r\n0\r\n\r\n")
	case "/granted/413-hints":
		c.say("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 413 Too Large\r\nContent-Length: 9\r\nConnection: close\r\n\r\ntoo large")
	}
	_, _ = io.Copy(io.Discard, c.in)
}

func grantedPaths(r *authz.Rule) { r.Paths = []string{"/granted/**"} }

// outcomes are the answers to requests whose bodies have not arrived.
var outcomes = []struct {
	path   string
	status int
	reason authz.Reason // of a refusal
}{
	{"/refused", 403, authz.PathNotGranted},
	{"/granted/resets", 502, authz.UpstreamUnreachable},
	{"/granted/ends", 502, authz.UpstreamUnreachable},
	{"/granted/garbage", 502, authz.UpstreamUnreachable},
	{"/granted/hints-then-ends", 502, authz.UpstreamUnreachable},
	{"/granted/413", 413, authz.Granted},
	{"/granted/413-open", 413, authz.Granted},
	{"/granted/413-chunked", 413, authz.Granted},
	{"/granted/413-hints", 413, authz.Granted},
}

// TestAnswerWhileSending answers while the plugin's body is still arriving: the answer
// does not wait for the rest, and data that the plugin sends afterwards is discarded.
func TestAnswerWhileSending(t *testing.T) {
	o := newOrigin(t, rude)
	byEachDoor(t, o, grantedPaths, func(t *testing.T, d door, w *world, dial func() *rawConn) {
		for _, test := range outcomes {
			for fields, first := range map[string]string{
				"Transfer-Encoding: chunked\r\n":                         "3\r\nabc\r\n",
				"Content-Length: 200000\r\n":                             "",
				"Content-Length: 300000000\r\n":                          "abc",
				"Content-Length: 200000\r\nExpect: 100-continue\r\n":     "",
				"Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n":       "",
				"Content-Length: 5\r\nConnection: close\r\nA: b\r\n":     "abc",
				"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n": "",
				"Transfer-Encoding: chunked\r\nContent-Type: a/b\r\n":    "fffff\r\nabc",
				"Content-Length: 200000\r\nContent-Type: text/plain\r\n": strings.Repeat("x", 100_000),
			} {
				c := dial()
				o.send(c, d, "POST", test.path, fields, first)
				response, body, err := c.answer("POST")
				if err != nil || response.StatusCode != test.status {
					t.Errorf("%s with %q: %+v, %v", test.path, fields, response, err)
					continue
				}
				if test.reason != authz.Granted {
					wantRefusal(t, response, body, test.reason)
					if !response.Close {
						t.Errorf("%s with %q: the connection is not announced to end", test.path, fields)
					}
				} else if body != "too large" {
					t.Errorf("%s: body is %q", test.path, body)
				}
				_, _ = io.WriteString(c.Conn, strings.Repeat("x", 10_000)) // and goes on sending
				_ = c.Close()
			}
		}
		w.settled()
	})
}

// TestAnswerToOneWhoSendsFirst answers a client that reads only after it has sent
// everything, as most of Python's do.
func TestAnswerToOneWhoSendsFirst(t *testing.T) {
	const size = 12 << 20
	o := newOrigin(t, rude)
	byEachDoor(t, o, grantedPaths, func(t *testing.T, d door, w *world, dial func() *rawConn) {
		paths := append(slices.Clip(outcomes), outcomes[5])
		paths[len(paths)-1].path = "/granted/413-and-resets"
		for _, test := range paths {
			c := dial()
			o.send(c, d, "PUT", test.path, fmt.Sprintf("Content-Length: %d\r\n", size), "")
			block := strings.Repeat("x", 64<<10)
			for range size / len(block) {
				if _, err := io.WriteString(c.Conn, block); err != nil {
					t.Fatalf("%s: sending failed: %v", test.path, err)
				}
			}
			if response, _, err := c.answer("PUT"); err != nil || response.StatusCode != test.status {
				t.Errorf("%s: %+v, %v", test.path, response, err)
			}
			_ = c.Close()
		}
		w.settled()
	})
}

// upload sends a body as http.client does, which reads only afterwards.
const upload = `
import http.client, ssl, sys, urllib.parse
url, size, proxy = urllib.parse.urlsplit(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(":")
if url.scheme == "https":
    c = http.client.HTTPSConnection(proxy[0], int(proxy[1]), timeout=30, context=ssl.create_default_context())
    c.set_tunnel(url.hostname, url.port)
    target = url.path
else:
    c = http.client.HTTPConnection(proxy[0], int(proxy[1]), timeout=30)
    target = sys.argv[1]
body = (b"x" * 65536 for _ in range(size // 65536)) if sys.argv[4] == "chunked" else b"x" * size
c.request("POST", target, body=body, headers={"Host": url.netloc}, encode_chunked=sys.argv[4] == "chunked")
r = c.getresponse()
print(r.status, r.read()[:9])
`

// TestRealUploads uploads with programs that send before they read, and with one
// whose input never ends.
func TestRealUploads(t *testing.T) {
	o := newOrigin(t, rude)
	w, _ := o.through(t, door{}, grantedPaths)
	for _, secure := range []bool{false, true} {
		base := map[bool]string{false: "http://", true: "https://"}[secure] + o.authority(secure)
		for path, want := range map[string]string{"/refused": "403", "/granted/413": "413", "/granted/resets": "502"} {
			t.Run("python "+base[:5]+path, func(t *testing.T) {
				testenv.Require(t, testenv.Program("python3"))
				for _, framing := range []string{"length", "chunked"} {
					for _, size := range []int{5 << 20, 30 << 20} {
						stdout, stderr, err := w.run(t, "python3", "-c", upload, base+path, fmt.Sprint(size), w.addr.String(), framing)
						if err != nil || !strings.HasPrefix(stdout, want) {
							t.Errorf("%d bytes, %s: %v %s %s", size, framing, err, stdout, stderr)
						}
					}
				}
			})
			t.Run("curl "+base[:5]+path, func(t *testing.T) {
				testenv.Require(t, testenv.Program("curl"))
				script := `{ echo one; exec sleep 60; } | { curl -s --http1.1 -m 20 -T - -o /dev/null -w '%{http_code}' ` + base + path + `; kill 0; }`
				stdout, stderr, _ := w.run(t, "setsid", "-w", "sh", "-c", script) // kill 0 ends the shell too
				if stdout != want {
					t.Errorf("answer is %q %s", stdout, stderr)
				}
			})
		}
	}
}

// TestBusyboxWget ends its direction after its request. The upstream is slow.
func TestBusyboxWget(t *testing.T) {
	testenv.Require(t, testenv.Program("busybox"))
	o := newOrigin(t, func(c *originConn) {
		if c.head() != nil {
			time.Sleep(3 * 100 * time.Millisecond)
			c.say("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nanswer")
		}
	})
	for _, d := range doors[2:] {
		t.Run(d.name, func(t *testing.T) {
			w, _ := o.through(t, d, nil)
			scheme := map[bool]string{false: "http", true: "https"}[d.secure]
			stdout, stderr, err := w.run(t, "env", "-u", "http_proxy", "-u", "https_proxy", "busybox", "wget", "-q", "-O", "-", "--no-check-certificate",
				"--header", fmt.Sprintf("Host: 127.0.0.1:%d", o.address[d.secure].Port()), scheme+"://"+w.addr.String()+"/")
			if err != nil || stdout != "answer" {
				t.Errorf("%v %q %s", err, stdout, stderr)
			}
		})
	}
}

// TestRefusalKeepsTheConnection refuses requests whose bodies have arrived, or arrive
// with the next packet: the connection stays open.
func TestRefusalKeepsTheConnection(t *testing.T) {
	o := newOrigin(t, echoing)
	byEachDoor(t, o, grantedPaths, func(t *testing.T, d door, _ *world, dial func() *rawConn) {
		c := dial()
		for _, test := range []struct{ fields, first, rest string }{
			{"Content-Length: 3\r\n", "abc", ""},
			{"Content-Length: 3\r\n", "", "abc"},
			{"Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n", "0\r\nX-Sum: 1\r\n\r\n"},
			{"Content-Length: 60000\r\n", strings.Repeat("x", 30_000), strings.Repeat("x", 30_000)},
		} {
			o.send(c, d, "POST", "/refused", test.fields, test.first)
			c.write(test.rest)
			if response, _, err := c.answer("POST"); err != nil || response.StatusCode != 403 || response.Close {
				t.Fatalf("%q: %+v, %v", test.fields, response, err)
			}
			o.send(c, d, "GET", "/granted/a", "", "")
			if response, _, err := c.answer("GET"); err != nil || response.StatusCode != 200 {
				t.Fatalf("after it: %+v, %v", response, err)
			}
		}
	})
}

// TestNothingIsServedAfterAnUnreadBody has the rest of a body look like a request,
// also where it was read with the head.
func TestNothingIsServedAfterAnUnreadBody(t *testing.T) {
	o := newOrigin(t, rude)
	byEachDoor(t, o, grantedPaths, func(t *testing.T, d door, w *world, dial func() *rawConn) {
		for _, path := range []string{"/refused", "/granted/resets", "/granted/413", "/granted/413-open", "/granted/413-chunked"} {
			c, before := dial(), len(w.records.of(authz.KindDecision))+len(w.refused())
			smuggled := "GET " + o.target(d, "/granted/smuggled") + " HTTP/1.1\r\nHost: " + o.authority(d.secure) + "\r\n\r\n"
			o.send(c, d, "POST", path, "Content-Length: 100000000\r\n", strings.Repeat(smuggled, 3))
			if _, _, err := c.answer("POST"); err != nil {
				t.Errorf("%s: %v", path, err)
			}
			_, _ = io.WriteString(c.Conn, strings.Repeat(smuggled, 100))
			_ = c.Conn.(half).CloseWrite()
			if rest, _ := io.ReadAll(c.in); len(rest) > 0 {
				t.Errorf("%s: more was answered: %.100q", path, rest)
			}
			w.settled()
			if n := len(w.records.of(authz.KindDecision)) + len(w.refused()) - before; n > 2 { // its own decision and refusal
				t.Errorf("%s: %d decisions and refusals", path, n)
			}
		}
	})
}

// TestHalfCloseAfterTheRequest answers a client that ends its direction after its
// request, as busybox wget does, and notices one that has disconnected.
func TestHalfCloseAfterTheRequest(t *testing.T) {
	left := make(chan struct{})
	o := newOrigin(t, func(c *originConn) {
		r := c.head()
		if r == nil {
			return
		}
		if r.URL.Path == "/left" {
			_, _ = io.Copy(io.Discard, c.in) // until the proxy gives the request up
			left <- struct{}{}
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		time.Sleep(3 * 100 * time.Millisecond) // it takes longer than the proxy waits without asking
		c.say("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nanswer")
	})
	byEachDoor(t, o, nil, func(t *testing.T, d door, w *world, dial func() *rawConn) {
		for method, request := range map[string][2]string{"GET": {}, "POST": {"Content-Length: 3\r\n", "abc"}} {
			c := dial()
			o.send(c, d, method, "/", request[0], request[1])
			testenv.Must(t, c.Conn.(half).CloseWrite())
			if response, body, err := c.answer(method); err != nil || response.StatusCode != 200 || body != "answer" {
				t.Errorf("%s and a half-close: %+v %q, %v", method, response, body, err)
			}
			if _, err := c.in.ReadByte(); !errors.Is(err, io.EOF) {
				t.Errorf("after the answer: %v", err)
			}
		}
		c := dial()
		o.send(c, d, "GET", "/left", "", "")
		_ = c.Close()
		select {
		case <-left:
		case <-time.After(time.Minute):
			t.Error("the request of a plugin that has left goes on")
		}
		w.settled()
	})
}

// TestLeavesBeforeTheDecision closes the connection while its request is still
// being decided: the upstream's wait ends as soon as it has begun.
func TestLeavesBeforeTheDecision(t *testing.T) {
	left := make(chan struct{})
	o := newOrigin(t, func(c *originConn) {
		if c.head() != nil {
			_, _ = io.Copy(io.Discard, c.in) // until the proxy gives the request up
			close(left)
		}
	})
	asked, decide := make(chan struct{}), make(chan struct{})
	once := sync.OnceFunc(func() { close(asked) })
	input := authz.Input{Grants: []authz.Grant{{Name: "weather", Plugin: plugin, NotAfter: time.Now().Add(time.Hour), Rules: o.rules(nil)}}}
	w := newWorld(t, setup{input: input, config: func(c *proxy.Config) {
		var err error
		c.Gate, err = authz.NewGate(authz.GateConfig{Engine: c.Engine, Ledger: authz.NewLedger(), Recorder: new(recorder), Now: func() time.Time {
			once()
			<-decide
			return time.Now()
		}})
		testenv.Must(t, err)
	}})
	c := w.raw()
	o.send(c, doors[0], "GET", "/", "", "")
	<-asked
	_ = c.Close()
	time.Sleep(200 * time.Millisecond) // the proxy reads the end of the connection
	close(decide)
	select {
	case <-left:
	case <-time.After(time.Minute):
		t.Error("got a request that goes on after its plugin has left, want it given up")
	}
}
