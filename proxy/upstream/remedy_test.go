package upstream

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// TestRemedies gives each cause a remedy that fits it: only what may pass by
// itself is to be tried again.
func TestRemedies(t *testing.T) {
	verification := func(err error) error { return &tls.CertificateVerificationError{Err: err} }
	for _, c := range []struct {
		err                     error
		wantCause, wantRemedy   string
		transient, aboutTheRule bool
	}{
		{err: verification(x509.UnknownAuthorityError{}), wantCause: "authority that is not trusted", wantRemedy: "to.tls.caFile of RULE", aboutTheRule: true},
		{err: verification(x509.HostnameError{Certificate: &x509.Certificate{DNSNames: []string{"evil\x1b[31m"}}, Host: "api.example"}), wantCause: "for another name", wantRemedy: "use the name that the certificate is for"},
		{err: verification(x509.CertificateInvalidError{Reason: x509.Expired}), wantCause: "has expired or is not valid yet", wantRemedy: "renewed"},
		{err: verification(x509.CertificateInvalidError{Reason: x509.NotAuthorizedToSign}), wantCause: "not valid", wantRemedy: "another certificate"},
		{err: tls.RecordHeaderError{}, wantCause: "does not speak TLS", wantRemedy: "scheme: http on RULE", aboutTheRule: true},
		{err: tls.AlertError(116), wantCause: "certificate required", wantRemedy: "mtls", aboutTheRule: true},
		{err: fmt.Errorf("dial: %w", syscall.ECONNREFUSED), wantCause: "connection refused", wantRemedy: "check host and port"},
		{err: fmt.Errorf("dial: %w", syscall.EHOSTUNREACH), wantCause: "no route to host", wantRemedy: "route"},
		{err: syscall.ECONNRESET, wantCause: "connection reset by peer", transient: true},
		{err: io.EOF, wantCause: "closed the connection", transient: true},
		{err: errors.New("what an upstream wrote"), wantCause: "its answer is invalid", transient: true},
		{err: &net.OpError{Op: "remote error", Err: errors.New("tls: bad certificate")}, wantCause: "bad certificate", wantRemedy: "mtls", aboutTheRule: true},
	} {
		e := Unreachable(c.err, "ask api.example:443")
		if !strings.Contains(e.Detail, c.wantCause) || !strings.Contains(e.Remedy, c.wantRemedy) || c.transient != (e.Remedy == "") || c.aboutTheRule != strings.Contains(e.Remedy, "RULE") {
			t.Errorf("%v: %q, remedy %q", c.err, e.Detail, e.Remedy)
		}
		if strings.Contains(e.Detail+e.Remedy, "\x1b") || strings.Contains(e.Remedy, "try again") {
			t.Errorf("%v: %q, remedy %q", c.err, e.Detail, e.Remedy)
		}
	}
	if got := session.RuleName(authz.Decision{Grant: "weather", Rule: "api"}); got != "rule api of grant weather" {
		t.Errorf("%q", got)
	}
}
