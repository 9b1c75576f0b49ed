package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/placeholder"
	"github.com/chaperone-proxy/chaperone/proxy/scrub"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// upgrade forwards a change of protocols and then copies both ways until both directions
// have ended or the access is cut.
func (x *exchange) upgrade(response *http.Response) {
	upstream, ok := response.Body.(io.ReadWriteCloser)
	asked, got := x.admission.Request.Action.Upgrade, strings.Join(response.Header["Upgrade"], ",")
	if !ok || asked == "" || !strings.EqualFold(got, asked) {
		x.refuse(authz.UpstreamUnreachable, "the upstream changed to a protocol that was not requested")
		return
	}
	if x.extensionsDropped && len(response.Header["Sec-Websocket-Extensions"]) > 0 {
		x.refuse(authz.UpstreamUnreachable, "the upstream accepted a WebSocket extension that was not requested")
		return
	}
	stripAnswer(response.Header)
	x.scrubHeader(response.Header)
	plugin, buffered, err := x.control.Hijack()
	if err != nil {
		x.outcome.Detail = "the plugin disconnected before the answer"
		return
	}
	if !x.session.SetOnCut(func(cause error) {
		x.giveUp(cause)
		_ = upstream.Close()
		_ = x.conn.Cut()
	}) {
		_ = plugin.Close()
		x.incomplete(x.session.CutCause())
		return
	}
	if _, err := plugin.Write(upgradeHead(response.Header, got)); err != nil {
		_ = plugin.Close()
		x.outcome.Detail = "the plugin disconnected before the answer"
		return
	}
	x.conn.passOver()
	ahead, _ := buffered.Reader.Peek(buffered.Reader.Buffered()) // no more than there is
	x.relay(plugin, upstream, io.MultiReader(bytes.NewReader(ahead), plugin), asked)
	if x.session.CutCause() != nil {
		x.incomplete(x.session.CutCause())
	}
}

// relay copies both ways. The end of a WebSocket's input ends the connection: its
// protocol has a close of its own. For any other protocol the end of one direction
// is passed on, as for a tunnel, and the other direction goes on.
func (x *exchange) relay(plugin net.Conn, upstream io.ReadWriteCloser, input io.Reader, protocol string) {
	end := func() {
		x.giveUp(nil)
		_ = plugin.Close()
		_ = upstream.Close()
	}
	defer end()
	ended := func(to io.Writer, err error) {
		if err != nil || isWebSocket(protocol) || !session.CloseWrite(to) {
			end()
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if x.placeholders != nil {
			input = searched(input, protocol, x.placeholders.Search("what follows the upgrade", x.halt))
		}
		n, err := x.pump(upstream, input, &x.up)
		x.upload.sent.Add(n)
		ended(upstream, err)
	}()
	var output io.Reader = upstream
	if x.scrub != nil {
		output = searched(output, protocol, x.scrub.search("its messages"))
	}
	n, err := x.pump(plugin, output, &x.down)
	x.outcome.Bytes = n
	ended(plugin, err)
	<-done
}

func isWebSocket(protocol string) bool {
	return strings.EqualFold(strings.TrimSpace(protocol), "websocket")
}

// searched searches one direction of an upgraded connection: a WebSocket frame
// by frame, any other protocol as it is.
func searched(from io.Reader, protocol string, s scrub.Search) io.Reader {
	if isWebSocket(protocol) {
		return scrub.NewWebSocket(from, s)
	}
	s.PassShort = placeholder.MinHeldPrefix
	return scrub.NewReader(from, s)
}

// pump copies one way; either end may leave at any time.
func (x *exchange) pump(to io.Writer, from io.Reader, pace *session.RateLimiter) (int64, error) {
	buf := x.proxy.buffers.Get()
	defer x.proxy.buffers.Put(buf)
	n, err := pace.Copy(to, from, *buf)
	if errors.Is(err, scrub.ErrFrame) {
		x.halt(&session.RefusalError{Reason: authz.MalformedRequest, Detail: err.Error()})
	}
	return n, err
}

// upgradeHead is the head of a 101.
func upgradeHead(h http.Header, protocol string) []byte {
	var head bytes.Buffer
	head.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + protocol + "\r\n")
	_ = h.Write(&head) // a buffer takes everything
	head.WriteString("\r\n")
	return head.Bytes()
}

// rawRefusal is a refusal in bytes of HTTP/1.1. The connection is closed after it.
func rawRefusal(refusal authz.Refusal) []byte {
	body := refusal.Body()
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\n%s: %s\r\n%s: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		refusal.Status(), http.StatusText(refusal.Status()), authz.RefusalContentType,
		authz.HeaderReason, refusal.Reason, authz.HeaderDecision, refusal.Decision, len(body), body)
}
