package proxy

import (
	"errors"
	"io"
	"maps"
	"net/http"
	"net/textproto"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/session"
)

// passInformational forwards an informational answer (RFC 9110, section 15.2). 100 is not
// forwarded: net/http sends it by itself when the transport, which has received it,
// begins to read the plugin's body. 101 does not exist in HTTP/2 (RFC 9113, section 8.6),
// and net/http does not treat it as informational over HTTP/1.1.
func (x *exchange) passInformational(code int, header textproto.MIMEHeader) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.answer.settled || code == http.StatusContinue || code == http.StatusSwitchingProtocols {
		return nil
	}
	h := x.w.Header()
	stripAnswer(http.Header(header))
	x.scrubHeader(http.Header(header))
	maps.Copy(h, header)
	x.inform(code)
	clear(h)
	return nil
}

// inform writes the head of an informational answer. The caller holds x.mu.
func (x *exchange) inform(code int) {
	x.answer.informing.Store(true)
	defer x.answer.informing.Store(false)
	x.w.WriteHeader(code)
}

// endInforming aborts the connection if, after an access was cut, an informational answer
// is still being written to a plugin that does not read. The final answer would wait
// behind it, and so would the end of the access. Over HTTP/2 the other streams would wait
// as well.
func (x *exchange) endInforming() {
	time.AfterFunc(resetPatience, func() {
		if x.answer.informing.Load() {
			x.conn.Abort()
		}
	})
}

// settleAnswer prevents further informational answers: the final answer follows.
func (x *exchange) settleAnswer() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.answer.settled = true
}

// respond passes the upstream's answer to the plugin.
func (x *exchange) respond(response *http.Response) {
	body, err := x.scrubBody(response)
	var full *session.RefusalError
	switch {
	case errors.As(err, &full):
		x.refuseAs(full)
		return
	case err != nil:
		x.refuse(authz.UpstreamUnreachable, err.Error())
		return
	}
	streaming := isStreaming(response)
	h := x.w.Header()
	announced := x.header(h, response)
	if x.closesEarly(response) {
		h["Connection"] = []string{"close"}
	}
	if _, err := x.down.Wait(x.down.HeadSize("", h)); err != nil {
		x.fail(err)
		return
	}
	if !x.session.SetOnCut(x.abort) {
		clear(h)
		x.cutShort(x.session.CutCause())
		return
	}
	x.answer.streams.Store(streaming)
	x.w.WriteHeader(response.StatusCode)
	if streaming || announced > 0 {
		_ = x.control.Flush() // the plugin may wait for the head before it sends more
	}
	err = x.copyBody(body, streaming)
	if err == nil {
		_ = response.Body.Close() // the body is complete
		x.park()                  // before the plugin sends the next request
		x.trailer(h, response, announced)
		if x.r.ProtoMajor == 1 && response.ContentLength >= 0 {
			_ = x.control.Flush() // complete: the plugin does not wait for the end record
		}
		x.endBody(response)
		return
	}
	x.incomplete(err)
	if x.endMessages(h, response, err) {
		return
	}
	if x.session.CutCause() == nil {
		_ = x.control.Flush() // without a proxy the plugin would have received this part too
	}
	panic(http.ErrAbortHandler) // the plugin must notice that the answer is incomplete
}

// isStreaming reports whether the answer's parts matter one by one.
func isStreaming(response *http.Response) bool {
	return response.ContentLength < 0 || strings.HasPrefix(response.Header.Get("Content-Type"), "text/event-stream")
}

// header makes the head of the answer and returns how many trailers it announces.
func (x *exchange) header(h http.Header, response *http.Response) (announced int) {
	stripAnswer(response.Header)
	x.scrubHeader(response.Header)
	maps.Copy(h, response.Header)
	if _, sent := h["Content-Type"]; !sent {
		h["Content-Type"] = nil // net/http would guess one
	}
	if code := response.StatusCode; code == http.StatusNoContent || code == http.StatusNotModified && x.r.ProtoMajor == 2 {
		// A 204 has no Content-Length (RFC 9110, section 8.6). Some servers send one:
		// HTTP/1.1 clients tolerate it, and HTTP/2 clients end the stream. A 304 may have
		// one, and Go's HTTP/2 client then waits for a body of that length.
		delete(h, "Content-Length")
	}
	for name := range response.Trailer {
		if passesBack(name) && !x.quotedIn(name) {
			h["Trailer"] = append(h["Trailer"], name)
			announced++
		}
	}
	return announced
}

// trailer forwards the answer's trailers, announced or not. An announced trailer that did
// not come is omitted: net/http's HTTP/2 server waits forever for one with a nil value.
func (x *exchange) trailer(h http.Header, response *http.Response, announced int) {
	if len(response.Trailer) == 0 {
		return
	}
	x.scrubHeader(response.Trailer)
	prefix := http.TrailerPrefix
	if announced == len(response.Trailer) {
		prefix = "" // exactly those that were announced
	}
	for name, values := range response.Trailer {
		if len(values) > 0 && passesBack(name) {
			h[prefix+name] = values
		}
	}
}

// writeError is a failure to write to the plugin.
type writeError struct{ error }

// copyBody copies the answer's body, and flushes each part at once if flush is set.
func (x *exchange) copyBody(body io.Reader, flush bool) error {
	buf := x.proxy.buffers.Get()
	defer x.proxy.buffers.Put(buf)
	to := newAnswerWriter(x.w, x.control)
	defer to.close()
	for {
		n, err := body.Read(*buf)
		if n > 0 {
			if werr := x.write(to, (*buf)[:n], flush); werr != nil {
				return &writeError{werr}
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// write writes a part of the answer's body, in pieces that the rate limiter admits.
func (x *exchange) write(to *answerWriter, b []byte, flush bool) error {
	for len(b) > 0 {
		piece := b[:x.down.Chunk(len(b))]
		waited, err := x.down.Wait(len(piece))
		if err != nil {
			return err
		}
		n, err := to.write(piece, flush || waited)
		x.outcome.Bytes += int64(n)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
