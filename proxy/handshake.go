package proxy

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"reflect"
	"strconv"
	"syscall"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// soonAfter is how soon after its handshake a connection is closed by a program that
// checks the certificate only after the handshake, as programs with GnuTLS do.
const soonAfter = 5 * time.Second

// greeted makes c, on which inner has completed its handshake, report a close before any
// data was sent on it.
func (p *Proxy) greeted(c *conn, inner *tls.Conn) {
	done := p.cfg.Now()
	c.handshake.used.Store(false) // by the CONNECT
	c.handshake.unused = func() {
		if p.cfg.Now().Sub(done) > soonAfter {
			return // the program opened it in reserve
		}
		// The server has read already: this returns the error that ended its reading.
		_, err := inner.Read(make([]byte, 1))
		if alert, ok := remoteAlert(err); ok || isHangUp(err) {
			p.failedHandshake(c, err, alert, "right after the TLS handshake, before any request")
		}
	}
}

// refusedHandshake reports that the plugin's side did not complete a handshake.
func (p *Proxy) refusedHandshake(c *conn, err error) {
	p.failedHandshake(c, err, handshakeAlert(err, c.handshake.tail), "in the TLS handshake")
}

// handshakeAlert returns the alert that ended a handshake, 0 for none. tail is what was
// read of it last.
func handshakeAlert(err error, tail *session.TailBytes) uint8 {
	if alert, ok := remoteAlert(err); ok {
		return alert
	}
	return tail.Alert()
}

// failedHandshake reports why a handshake, or a connection right after it, ended.
func (p *Proxy) failedHandshake(c *conn, err error, alert uint8, when string) {
	p.reportHandshake(authz.Record{Scheme: string(authz.SchemeHTTPS), Host: c.hostOrAddress(), Port: c.port}, c.Source, handshakeFailure{err, alert, when})
}

// handshakeFailure is how the plugin's side ended a TLS connection with the sidecar.
type handshakeFailure struct {
	err   error
	alert uint8  // 0 for none
	when  string // of a hang-up
}

// reportHandshake reports a failure at a destination, which r has.
func (p *Proxy) reportHandshake(r authz.Record, source authz.Source, f handshakeFailure) {
	if p.cfg.Event == nil || errors.Is(f.err, net.ErrClosed) {
		return // not requested, or the sidecar ended it
	}
	r.Time, r.Kind, r.Plugin, r.Door, r.Detail = p.cfg.Now(), authz.KindHandshake, string(p.cfg.Plugin), source.Door, f.detail()
	r.PID, r.UID, r.Exe = source.PID, source.UID, source.Exe
	p.cfg.Event(&r)
}

func (f handshakeFailure) detail() string {
	switch {
	case distrusts(f.alert):
		return "the program does not trust the sidecar's certificate: alert " + alertName(f.alert)
	case f.alert != 0:
		return "the program ended the TLS handshake: alert " + alertName(f.alert)
	case isHangUp(f.err):
		return "the program closed the connection " + f.when + "; it probably does not trust the sidecar's certificate"
	}
	return "the TLS handshake failed: " + session.Quote(f.err.Error())
}

// isHangUp reports whether err is the other side's end of a connection.
func isHangUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// remoteAlert returns the alert that the other side sent, which crypto/tls returns
// as a net.OpError around a number of a type that it does not export. It is not a
// tls.AlertError, which only QUIC gets.
func remoteAlert(err error) (alert uint8, ok bool) {
	var remote *net.OpError
	if !errors.As(err, &remote) || remote.Op != "remote error" || remote.Err == nil {
		return 0, false
	}
	if number := reflect.ValueOf(remote.Err); number.Kind() == reflect.Uint8 {
		return uint8(number.Uint()), true
	}
	return 0, false
}

// distrusts reports whether an alert is about the certificate (RFC 8446, section
// 6.2): bad_certificate to certificate_unknown, unknown_ca and decrypt_error.
func distrusts(alert uint8) bool { return 42 <= alert && alert <= 46 || alert == 48 || alert == 51 }

// alertName returns an alert's name in RFC 8446, section 6, or its number.
func alertName(alert uint8) string {
	names := map[uint8]string{
		10: "unexpected_message", 20: "bad_record_mac", 22: "record_overflow", 40: "handshake_failure", 42: "bad_certificate",
		43: "unsupported_certificate", 44: "certificate_revoked", 45: "certificate_expired", 46: "certificate_unknown",
		47: "illegal_parameter", 48: "unknown_ca", 49: "access_denied", 50: "decode_error", 51: "decrypt_error",
		70: "protocol_version", 71: "insufficient_security", 80: "internal_error", 86: "inappropriate_fallback", 90: "user_canceled",
		109: "missing_extension", 110: "unsupported_extension", 112: "unrecognized_name", 113: "bad_certificate_status_response",
		115: "unknown_psk_identity", 116: "certificate_required", 120: "no_application_protocol",
	}
	if name := names[alert]; name != "" {
		return name
	}
	return strconv.Itoa(int(alert))
}

// watchUse records whether data was sent on an intercepted connection. net/http calls a
// connection active once it has read from it.
func (c *conn) watchUse(state http.ConnState) {
	switch state {
	case http.StateActive:
		c.handshake.used.Store(true)
	case http.StateClosed:
		if c.handshake.unused != nil && !c.handshake.used.Load() {
			c.handshake.unused()
		}
	case http.StateNew, http.StateIdle, http.StateHijacked:
	}
}
