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
	alert, ok := remoteAlert(err)
	if !ok {
		alert = c.handshake.tail.alert()
	}
	p.failedHandshake(c, err, alert, "in the TLS handshake")
}

// tailBytes is the last bytes that were read from a connection.
type tailBytes [7]byte

func (l *tailBytes) add(b []byte) {
	if len(b) >= len(l) {
		copy(l[:], b[len(b)-len(l):])
		return
	}
	copy(l[:], l[len(b):])
	copy(l[len(l)-len(b):], b)
}

// alert returns the fatal alert that was read last, 0 for none. With TLS 1.3 a
// client that refuses the certificate encrypts its alert (RFC 8446, section 6), but
// OpenSSL sends it in clear, as it has sent nothing encrypted so far. crypto/tls
// cannot decrypt that and returns an error of its own, bad_record_mac.
func (l *tailBytes) alert() uint8 {
	const alert, fatal = 21, 2
	if l[0] == alert && l[1] == 3 && l[3] == 0 && l[4] == 2 && l[5] == fatal {
		return l[6]
	}
	return 0
}

// failedHandshake reports why a handshake, or a connection right after it, ended.
func (p *Proxy) failedHandshake(c *conn, err error, alert uint8, when string) {
	if p.cfg.Handshake == nil || errors.Is(err, net.ErrClosed) {
		return // not requested, or the sidecar ended it
	}
	detail := "the TLS handshake failed: " + session.Quote(err.Error())
	switch {
	case distrusts(alert):
		detail = "the program does not trust the sidecar's certificate: alert " + alertName(alert)
	case alert != 0:
		detail = "the program ended the TLS handshake: alert " + alertName(alert)
	case isHangUp(err):
		detail = "the program closed the connection " + when + "; it probably does not trust the sidecar's certificate"
	}
	p.cfg.Handshake(&authz.Record{
		Time: p.cfg.Now(), Kind: authz.KindHandshake, Plugin: string(p.cfg.Plugin), Door: c.Source.Door,
		Scheme: string(authz.SchemeHTTPS), Host: c.hostOrAddress(), Port: c.port,
		PID: c.Source.PID, UID: c.Source.UID, Exe: c.Source.Exe, Detail: detail,
	})
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
