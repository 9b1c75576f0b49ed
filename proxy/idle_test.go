package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy"
)

// unrepeatable and repeatable are methods with and without a body.
var (
	unrepeatable = [][2]string{{"POST", "abc"}, {"POST", ""}, {"PATCH", "abc"}}
	repeatable   = [][2]string{{"GET", ""}, {"HEAD", ""}, {"OPTIONS", ""}, {"DELETE", ""}, {"PUT", ""}, {"PUT", "abc"}, {"DELETE", "abc"}}
	all          = append(slices.Clip(unrepeatable), repeatable...)
)

func lengthOf(body string) string {
	if body == "" {
		return ""
	}
	return fmt.Sprintf("Content-Length: %d\r\n", len(body))
}

// TestNewConnectionOfThePlugin answers the first request of each connection and resets
// the connection on the next, as an upstream does whose idle timeout expires just then.
// No request fails on a new connection of the plugin.
func TestNewConnectionOfThePlugin(t *testing.T) {
	for name, announced := range map[string]string{"announced": "Keep-Alive: timeout=1\r\n", "not announced": ""} {
		o := newOrigin(t, func(c *originConn) {
			r := c.head()
			if r == nil {
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			c.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + announced + "\r\n")
			_, _ = c.in.ReadByte()
			c.reset()
		})
		byEachDoor(t, o, nil, func(t *testing.T, d door, _ *world, dial func() *rawConn) {
			for _, request := range all {
				for range 3 {
					c := dial()
					o.send(c, d, request[0], "/", lengthOf(request[1]), request[1])
					if response, body, err := c.answer(request[0]); err != nil || response.StatusCode != 200 {
						t.Errorf("%s: %s %q: %+v %s, %v", name, request[0], request[1], response, body, err)
					}
					_ = c.Close()
				}
			}
		})
	}
}

// TestStaleOnAUsedConnection has the upstream close its connection on the second request
// of the plugin's connection. A repeatable request is repeated. For any other the
// plugin's connection is closed, as the upstream's was, without an answer.
func TestStaleOnAUsedConnection(t *testing.T) {
	for _, how := range []string{"resets", "ends"} {
		var seen sync.Map // how often a request arrived
		o := newOrigin(t, func(c *originConn) {
			for first := true; ; first = false {
				r := c.head()
				if r == nil {
					return
				}
				n, _ := seen.LoadOrStore(r.URL.Path, new(atomic.Int64))
				n.(*atomic.Int64).Add(1)
				if !first {
					if how == "resets" {
						c.reset()
					}
					return
				}
				_, _ = io.Copy(io.Discard, r.Body)
				c.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			}
		})
		byEachDoor(t, o, nil, func(t *testing.T, d door, w *world, dial func() *rawConn) {
			number := 0
			twice := func(method, body string) (response *http.Response, arrived int64, err error) {
				c := dial()
				defer c.Close()
				for range 2 {
					number++
					path := fmt.Sprintf("/%s/%d", strings.ReplaceAll(d.name, " ", "-"), number)
					o.send(c, d, method, path, lengthOf(body), body)
					response, _, err = c.answer(method)
					if n, ok := seen.Load(path); ok {
						arrived = n.(*atomic.Int64).Load()
					}
				}
				return response, arrived, err
			}
			for _, request := range repeatable {
				if response, arrived, err := twice(request[0], request[1]); err != nil || response.StatusCode != 200 || arrived != 2 {
					t.Errorf("%s %s: %+v, %v, sent %d times", how, request[0], response, err, arrived)
				}
			}
			for _, request := range unrepeatable {
				if response, arrived, err := twice(request[0], request[1]); err == nil || arrived > 1 {
					t.Errorf("%s %s %q is answered: %+v, sent %d times", how, request[0], request[1], response, arrived)
				}
			}
			w.settled()
			for _, end := range w.records.of(authz.KindEnd) {
				if strings.Contains(end.Detail, "and the plugin's connection was closed") {
					return
				}
			}
			t.Error("it is not recorded why the plugin's connection was closed")
		})
	}
}

// TestConnectionsAreUsedAgain uses one connection to each upstream while requests follow
// closely, and are repeatable or come on a used connection of the plugin.
func TestConnectionsAreUsedAgain(t *testing.T) {
	var connections atomic.Int64
	o := newOrigin(t, func(c *originConn) {
		connections.Add(1)
		echoing(c)
	})
	byEachDoor(t, o, nil, func(t *testing.T, d door, _ *world, dial func() *rawConn) {
		connections.Store(0)
		for range 5 {
			c := dial()
			for _, method := range []string{"GET", "POST", "GET", "PUT"} {
				body := map[bool]string{true: "abc"}[method != "GET"]
				o.send(c, d, method, "/", lengthOf(body), body)
				if response, _, err := c.answer(method); err != nil || response.StatusCode != 200 {
					t.Fatalf("%s: %+v, %v", method, response, err)
				}
			}
			_ = c.Close()
		}
		if n := connections.Load(); n > 3 { // the plugin may be faster than the end of an exchange
			t.Errorf("%d connections were made", n)
		}
	})
}

// TestConnectionLogin authenticates a connection, as NTLM does (RFC 4559, section 6).
// Another connection of the plugin does not use that login, whether the requests are
// sequential or concurrent.
func TestConnectionLogin(t *testing.T) {
	o := newOrigin(t, func(c *originConn) {
		user := ""
		for r := c.head(); r != nil; r = c.head() {
			_, _ = io.Copy(io.Discard, r.Body)
			switch scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " "); {
			case strings.HasPrefix(token, "login-"):
				user = strings.TrimPrefix(token, "login-")
				fallthrough
			case user != "":
				c.say(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(user), user))
			case token == "hello":
				c.say("HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: " + scheme + " challenge\r\nContent-Length: 0\r\n\r\n")
			default:
				c.say("HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Negotiate\r\nWWW-Authenticate: Basic realm=x, NTLM\r\nContent-Length: 0\r\n\r\n")
			}
		}
	})
	byEachDoor(t, o, nil, func(t *testing.T, d door, _ *world, dial func() *rawConn) {
		ask := func(c *rawConn, method, authorization string) string {
			t.Helper()
			if authorization != "" {
				authorization = "Authorization: " + authorization + "\r\n"
			}
			o.send(c, d, method, "/", authorization, "")
			response, body, err := c.answer(method)
			testenv.Must(t, err)
			return fmt.Sprint(response.StatusCode, body)
		}
		a, b := dial(), dial()
		for _, step := range []struct {
			c                           *rawConn
			method, authorization, want string
		}{
			{a, "GET", "", "401"},
			{b, "GET", "", "401"},
			{a, "POST", "NTLM hello", "401"},
			{b, "POST", "NTLM hello", "401"},
			{a, "POST", "NTLM login-ada", "200ada"},
			{b, "GET", "", "401"},
			{b, "GET", "Negotiate login-bob", "200bob"},
			{a, "GET", "", "200ada"},
			{b, "POST", "", "200bob"},
			{a, "POST", "", "200ada"},
		} {
			if got := ask(step.c, step.method, step.authorization); got != step.want {
				t.Errorf("%s %q is answered with %q, want %q", step.method, step.authorization, got, step.want)
			}
		}
		_, _ = a.Close(), b.Close()
		for range 10 {
			c := dial()
			if got := ask(c, "GET", ""); got != "401" {
				t.Errorf("a new connection is answered with %q", got)
			}
			_ = c.Close()
		}
	})
}

// TestLoginEndsWithItsConnection closes the upstream's connection with the
// plugin's that is logged in on it.
func TestLoginEndsWithItsConnection(t *testing.T) {
	ended := make(chan struct{}, 1)
	o := newOrigin(t, func(c *originConn) {
		r := c.head()
		if r == nil {
			return
		}
		c.say("HTTP/1.1 200 OK\r\nWWW-Authenticate: Negotiate oYGyMIGv\r\nContent-Length: 0\r\n\r\n")
		_, _ = c.in.ReadByte()
		ended <- struct{}{}
	})
	byEachDoor(t, o, nil, func(t *testing.T, d door, _ *world, dial func() *rawConn) {
		c := dial()
		o.send(c, d, "GET", "/", "", "")
		if response, _, err := c.answer("GET"); err != nil || response.StatusCode != 200 {
			t.Fatalf("%+v, %v", response, err)
		}
		_ = c.Close()
		select {
		case <-ended:
		case <-time.After(2 * time.Minute):
			t.Error("the connection is kept")
		}
	})
}

// TestNoContentWithContent has an upstream send a body behind a 204. It is not
// taken for the next answer.
func TestNoContentWithContent(t *testing.T) {
	o := newOrigin(t, func(c *originConn) {
		for r := c.head(); r != nil; r = c.head() {
			c.say("HTTP/1.1 204 No Content\r\nContent-Length: 40\r\n\r\n")
			time.Sleep(2 * time.Millisecond)
			c.say("HTTP/1.1 418 Teapot\r\nContent-Length: 0\r\n\r\n")
		}
	})
	byEachDoor(t, o, nil, func(t *testing.T, d door, _ *world, dial func() *rawConn) {
		c := dial()
		for range 20 {
			o.send(c, d, "GET", "/", "", "")
			if response, _, err := c.answer("GET"); err != nil || response.StatusCode != 204 || response.Header.Get("Content-Length") != "" {
				t.Fatalf("%+v, %v", response, err)
			}
		}
	})
}

// TestHostSet checks that the set of remembered hosts is bounded.
func TestHostSet(t *testing.T) {
	if n := proxy.FillHostSet(5000); n != 1024 {
		t.Errorf("%d hosts are held", n)
	}
}
