package attack

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// attempt is one order to the hostile plugin: to connect, and to send these bytes or
// this HTTP/2 request.
type attempt struct {
	ID     string
	Dial   string // host:port, unix:PATH, or "": the proxy of its environment
	Tunnel string // the target of a CONNECT to that proxy; "" without one
	TLS    bool   // inside
	SNI    string // "" sends none
	H2     bool
	Text   []byte      // of HTTP/1.1
	After  [][]byte    // pieces that it sends after the head of an answer
	Fields [][2]string // of HTTP/2
	Body   []byte
	Tail   [][2]string // trailers
	Hold   bool        // the answer has no end: it reports the beginning, and the end, if it comes
	Waits  bool        // the answer is long in coming, and takes no other's turn
	Flood  int         // so many connections that send this and no more, and stay
}

// attemptResult is what the plugin got of an attempt.
type attemptResult struct {
	ID    string
	Event string // "begun" of an attempt that is held, "flows" while it goes on, "done"
	Got   []byte
	Err   string
}

// pluginView is what the plugin has before it does anything.
type pluginView struct {
	Env   []string
	Files map[string]string // by path: what is in them, or why that cannot be read
}

// hostilePlugin takes attempts, a line of JSON each, and answers in lines. Its
// arguments are files that it would like to read.
func hostilePlugin() {
	var writing sync.Mutex
	out := json.NewEncoder(os.Stdout)
	say := func(v any) {
		writing.Lock()
		defer writing.Unlock()
		_ = out.Encode(v) // the test has ended
	}
	known := pluginView{Env: os.Environ(), Files: map[string]string{}}
	for _, path := range os.Args[1:] {
		text, err := os.ReadFile(path)
		if known.Files[path] = string(text); err != nil {
			known.Files[path] = err.Error()
		}
	}
	say(known)
	proxy := cmp.Or(os.Getenv("HTTPS_PROXY"), "http://127.0.0.1:1")
	via, err := url.Parse(proxy)
	if err != nil {
		panic("the proxy of the environment is invalid")
	}
	turns := make(chan struct{}, 24)
	in := json.NewDecoder(bufio.NewReader(os.Stdin))
	for {
		var a attempt
		if in.Decode(&a) != nil {
			return
		}
		go func() {
			if a.Flood > 0 {
				say(attemptResult{ID: a.ID, Event: "done", Err: fmt.Sprint(a.flood(via.Host))})
				return
			}
			if !a.Hold && !a.Waits {
				turns <- struct{}{}
				defer func() { <-turns }()
			}
			got, err := a.do(via, func(event string) { say(attemptResult{ID: a.ID, Event: event}) })
			r := attemptResult{ID: a.ID, Event: "done", Got: got}
			if err != nil {
				r.Err = err.Error()
			}
			say(r)
		}()
	}
}

// flood opens the connections, which nobody closes.
func (a *attempt) flood(proxy string) error {
	for range a.Flood {
		conn, err := net.DialTimeout("tcp", cmp.Or(a.Dial, proxy), patience)
		if err != nil {
			return err
		}
		if _, err := conn.Write(a.Text); err != nil {
			return err
		}
		go func() { _, _ = io.Copy(io.Discard, conn) }() // keeps the connection open
	}
	return nil
}

const patience = 30 * time.Second // with what comes at all

// do connects and sends.
func (a *attempt) do(via *url.URL, say func(string)) (got []byte, err error) {
	network, address := "tcp", cmp.Or(a.Dial, via.Host)
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", path
	}
	conn, err := net.DialTimeout(network, address, patience)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(2 * patience)) // a broken one fails below
	if a.Tunnel != "" {
		if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n%s\r\n", a.Tunnel, proxyLogin(via)); err != nil {
			return nil, err
		}
		head, opened := readConnect(conn)
		if !opened {
			return head, nil
		}
	}
	if a.TLS {
		cfg := &tls.Config{InsecureSkipVerify: true, ServerName: a.SNI, NextProtos: []string{"http/1.1"}}
		if a.H2 {
			cfg.NextProtos = []string{"h2"}
		}
		secure := tls.Client(conn, cfg)
		if err := secure.Handshake(); err != nil {
			return nil, fmt.Errorf("TLS: %w", err)
		}
		conn = secure
	}
	if a.H2 {
		return a.speakHTTP2(conn, say)
	}
	return a.speakHTTP1(conn, say)
}

// proxyLogin is the header line that the proxy wants, if it wants one.
func proxyLogin(via *url.URL) string {
	if via.User == nil {
		return ""
	}
	r := http.Request{Header: http.Header{}}
	password, _ := via.User.Password()
	r.SetBasicAuth(via.User.Username(), password)
	return "Proxy-Authorization: " + r.Header.Get("Authorization") + "\r\n"
}

// readConnect reads the answer to CONNECT, and no byte behind it.
func readConnect(conn net.Conn) (head []byte, opened bool) {
	one := make([]byte, 1)
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		if _, err := conn.Read(one); err != nil {
			return head, false
		}
		head = append(head, one[0])
	}
	if bytes.Contains(head, []byte(" 200 ")) {
		return head, true
	}
	answer, err := http.ReadResponse(bufio.NewReader(io.MultiReader(bytes.NewReader(head), conn)), &http.Request{Method: http.MethodConnect})
	if err != nil {
		return head, false
	}
	rest, _ := io.ReadAll(answer.Body)
	return append(head, rest...), false
}

// recordingReader keeps what is read.
type recordingReader struct {
	io.Reader
	got bytes.Buffer
}

func (k *recordingReader) Read(p []byte) (int, error) {
	n, err := k.Reader.Read(p)
	k.got.Write(p[:n])
	return n, err
}

// speakHTTP1 sends the text and reads every answer that comes of it.
func (a *attempt) speakHTTP1(conn net.Conn, say func(string)) ([]byte, error) {
	if _, err := conn.Write(a.Text); err != nil {
		return nil, err
	}
	all := &recordingReader{Reader: conn}
	in := bufio.NewReader(all)
	method, _, _ := strings.Cut(string(a.Text), " ")
	for answers := 0; ; {
		answer, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			if answers > 0 {
				err = nil
			}
			return all.got.Bytes(), err
		}
		switch {
		case !a.Hold:
		case answer.StatusCode == http.StatusOK:
			return nil, hold(answer.Body, say)
		case answer.StatusCode == http.StatusSwitchingProtocols:
			return nil, hold(in, say)
		}
		if answer.StatusCode == http.StatusSwitchingProtocols {
			for _, piece := range a.After {
				_, _ = conn.Write(piece) // a refusal shows in the answer
				time.Sleep(5 * time.Millisecond)
			}
			_ = conn.SetReadDeadline(time.Now().Add(time.Second))
			_, _ = io.Copy(io.Discard, in)
			return all.got.Bytes(), nil
		}
		_, err = io.Copy(io.Discard, answer.Body)
		if answers++; answer.Close || err != nil {
			for name, values := range answer.Trailer {
				fmt.Fprintf(&all.got, "%s: %s\n", name, strings.Join(values, "\n"))
			}
			return all.got.Bytes(), nil
		}
		if answer.StatusCode >= 200 { // is there another?
			_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		}
	}
}

// hold reads an answer without end.
func hold(body io.Reader, say func(string)) error {
	buf := make([]byte, 4<<10)
	for pieces := 0; ; pieces++ {
		n, err := body.Read(buf)
		switch {
		case err != nil:
			return err
		case pieces == 0 && n > 0:
			say("begun")
		case pieces%8 == 0:
			say("flows")
		}
	}
}

// speakHTTP2 sends one request and reads its answer, as text.
func (a *attempt) speakHTTP2(conn net.Conn, say func(string)) ([]byte, error) {
	framer := http2.NewFramer(conn, bufio.NewReader(conn))
	framer.AllowIllegalWrites = true
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return nil, err
	}
	if err := framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}, http2.Setting{ID: http2.SettingEnablePush, Val: 0}); err != nil {
		return nil, err
	}
	encoded := func(fields [][2]string) []byte {
		var b bytes.Buffer
		encoder := hpack.NewEncoder(&b)
		for _, f := range fields {
			_ = encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}) // to memory
		}
		return b.Bytes()
	}
	bodyless := len(a.Body) == 0 && len(a.Tail) == 0
	err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: encoded(a.Fields), EndHeaders: true, EndStream: bodyless})
	if err == nil && !bodyless {
		err = framer.WriteData(1, len(a.Tail) == 0, a.Body)
	}
	if err == nil && len(a.Tail) > 0 {
		err = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: encoded(a.Tail), EndHeaders: true, EndStream: true})
	}
	if err != nil {
		return nil, err
	}
	return a.readHTTP2(framer, say)
}

func (a *attempt) readHTTP2(framer *http2.Framer, say func(string)) ([]byte, error) {
	var got bytes.Buffer
	for pieces := 0; ; {
		frame, err := framer.ReadFrame()
		if err != nil {
			return got.Bytes(), err
		}
		switch f := frame.(type) {
		case *http2.MetaHeadersFrame:
			for _, field := range f.Fields {
				fmt.Fprintf(&got, "%s: %s\n", field.Name, field.Value)
			}
		case *http2.DataFrame:
			if n := uint32(len(f.Data())); n > 0 {
				_ = framer.WriteWindowUpdate(0, n) // a broken connection fails to be read
				_ = framer.WriteWindowUpdate(1, n)
			}
			switch pieces++; {
			case !a.Hold:
				got.Write(f.Data())
			case pieces == 1:
				say("begun")
			case pieces%8 == 0:
				say("flows")
			}
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = framer.WriteSettingsAck()
			}
		case *http2.GoAwayFrame:
			got.Write(f.DebugData())
			if f.ErrCode == http2.ErrCodeNo && f.LastStreamID > 0 { // the answer is still to come (RFC 9113, section 6.8)
				break
			}
			return got.Bytes(), fmt.Errorf("GOAWAY %v", f.ErrCode)
		case *http2.RSTStreamFrame:
			return got.Bytes(), fmt.Errorf("RST_STREAM %v", f.ErrCode)
		}
		if h := frame.Header(); h.StreamID == 1 && h.Flags.Has(http2.FlagDataEndStream) && (h.Type == http2.FrameData || h.Type == http2.FrameHeaders) {
			return got.Bytes(), nil
		}
	}
}
