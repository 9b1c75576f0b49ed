package proxy_test

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	h2spec "github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/proxy"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// h2Deviations are the cases of h2spec that the proxy's listener fails, with the reason.
// A case that passes must not be listed.
var h2Deviations = map[string]string{
	"TLS=true/http2/6.5.3/1":  duplicateSettings,
	"TLS=false/http2/6.5.3/1": duplicateSettings,
	"TLS=false/http2/3.5/2": "without TLS what does not begin with the preface is HTTP/1.1, which answers 400 before it closes; " +
		"h2spec takes the answer for a frame",
}

const duplicateSettings = "net/http ends a connection whose SETTINGS state a value twice, to bound what it has to process; no client sends such"

// TestH2Spec runs h2spec against the listener, as a plugin whose connections the
// kernel redirects: over TLS that is intercepted, and without TLS.
func TestH2Spec(t *testing.T) {
	for _, secured := range []bool{true, false} {
		t.Run(fmt.Sprintf("TLS=%t", secured), func(t *testing.T) {
			api := upstream(t, testenv.UpstreamConfig{Plain: !secured})
			r := rule(api, "all", "127.0.0.1")
			if !secured {
				r.To.Scheme, r.To.TLS, r.Credential = authz.SchemeHTTP, authz.TLS{}, ""
			}
			w := newWorld(t, setup{input: granted(r), config: func(c *proxy.Config) {
				c.Identify = func(net.Conn) (session.Peer, bool) {
					return session.Peer{PID: 7, UID: 1000, Original: api.Addr}, true
				}
			}})
			c := &config.Config{
				Host: w.addr.Addr().String(), Port: int(w.addr.Port()), Path: "/open", TLS: secured, Insecure: true,
				Timeout: 2 * time.Second, MaxHeaderLen: 4000, Strict: true,
			}
			for _, group := range []*spec.TestGroup{generic.Spec(), h2spec.Spec(), hpack.Spec()} {
				runH2Spec(t, c, group, fmt.Sprintf("TLS=%t/", secured))
			}
		})
	}
	outliveGoAway()
}

// outliveGoAway waits for connections that net/http has ended with an error, whose
// goroutines it keeps for a second.
func outliveGoAway() { time.Sleep(1500 * time.Millisecond) }

// runH2Spec runs the cases of a group and of those below it.
func runH2Spec(t *testing.T, c *config.Config, group *spec.TestGroup, mode string) {
	for n, test := range append(group.Tests, group.StrictTests...) {
		id := fmt.Sprintf("%s/%d", group.ID(), n+1)
		t.Run(id, func(t *testing.T) {
			t.Parallel()
			reason, deviates := h2Deviations[mode+id]
			var err error
			for range 3 { // a machine under load may be late
				if err = runH2Case(c, test); (err == nil) != deviates {
					break
				}
			}
			switch {
			case err != nil && !deviates:
				t.Errorf("%s: %v\n%s", test.Desc, err, test.Requirement)
			case err == nil && deviates:
				t.Errorf("%s: it is met, and listed as a deviation: %s", test.Desc, reason)
			}
		})
	}
	for _, below := range group.Groups {
		runH2Spec(t, c, below, mode)
	}
}

// runH2Case runs one case on a connection of its own.
func runH2Case(c *config.Config, test *spec.TestCase) error {
	conn, err := spec.Dial(c)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := test.Run(c, conn); err != nil && err != spec.ErrSkipped { //nolint:errorlint // as h2spec compares it
		return err
	}
	return nil
}
