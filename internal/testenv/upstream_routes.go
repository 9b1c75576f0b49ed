package testenv

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"strconv"
	"time"

	"github.com/coder/websocket"
)

// discardLog drops net/http's messages about clients that leave.
func discardLog() *log.Logger { return log.New(io.Discard, "", 0) }

func serveRedirect(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Location", r.FormValue("to"))
	w.WriteHeader(http.StatusFound)
}

func serveHeaders(w http.ResponseWriter, r *http.Request) {
	for name, values := range r.URL.Query() {
		for _, value := range values {
			w.Header().Add(name, value)
		}
	}
	fmt.Fprintln(w, "ok")
}

func serveStatus(w http.ResponseWriter, r *http.Request) {
	code, err := strconv.Atoi(r.FormValue("code"))
	if err != nil || code < 200 || code > 599 {
		code = http.StatusBadRequest
	}
	w.WriteHeader(code)
}

func serveDownload(w http.ResponseWriter, r *http.Request) {
	size, err := strconv.ParseInt(r.FormValue("bytes"), 10, 64)
	if err != nil || size < 0 {
		http.Error(w, "bytes=N is missing", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	_, _ = io.CopyN(w, endless{}, size) // an error means that the client has gone
}

func serveTrailers(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Trailer", "X-Digest")
	fmt.Fprintln(w, "a body")
	w.Header().Set("X-Digest", "of-a-body")
}

func serveSlow(w http.ResponseWriter, r *http.Request) {
	wait, err := time.ParseDuration(r.FormValue("wait"))
	if err != nil {
		http.Error(w, "wait=DURATION is missing", http.StatusBadRequest)
		return
	}
	select {
	case <-time.After(wait):
		fmt.Fprintln(w, "ok")
	case <-r.Context().Done():
	}
}

func serveBytes(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/octet-stream")
	if err := http.NewResponseController(w).Flush(); err != nil {
		return
	}
	for r.Context().Err() == nil {
		if _, err := io.CopyN(w, endless{}, 64<<10); err != nil {
			return
		}
	}
}

func serveEvents(w http.ResponseWriter, r *http.Request) {
	every := 10 * time.Millisecond
	if text := r.FormValue("every"); text != "" {
		var err error
		if every, err = time.ParseDuration(text); err != nil || every <= 0 {
			http.Error(w, "every=DURATION is wrong", http.StatusBadRequest)
			return
		}
	}
	count, err := strconv.Atoi(r.FormValue("count"))
	if err != nil {
		count = -1
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	ticks := time.NewTicker(every)
	defer ticks.Stop()
	for n := 1; count < 0 || n <= count; n++ {
		if _, err := fmt.Fprintf(w, "id: %d\ndata: event %d\n\n", n, n); err != nil {
			return
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		select {
		case <-ticks.C:
		case <-r.Context().Done():
			return
		}
	}
}

func serveWebSocket(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return // Accept has answered
	}
	defer conn.CloseNow()
	for {
		kind, message, err := conn.Read(r.Context())
		if err != nil {
			return
		}
		if err := conn.Write(r.Context(), kind, message); err != nil {
			return
		}
	}
}

// endless is a reader of letters that never ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a' + byte(i%26)
	}
	return len(p), nil
}

func serveEcho(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return // the client has gone
	}
	w.Header().Set("Content-Type", "application/json")
	answer := Received{
		Time: time.Now(), Proto: r.Proto, Method: r.Method, Host: r.Host, Target: r.RequestURI,
		Header: r.Header, Body: string(body), Remote: r.RemoteAddr, Accepted: true,
	}
	if r.TLS != nil {
		answer.SNI = r.TLS.ServerName
	}
	_ = json.NewEncoder(w).Encode(answer) // an error means that the client has gone
}
