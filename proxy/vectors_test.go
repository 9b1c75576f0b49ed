package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// vector is a request of a hostile or unusual plugin, on a connection of its own. In
// text, {G} is the granted authority, {E} one that is not granted, {U} the beginning of
// an absolute target at the granted host ("" inside a tunnel). The rule grants GET, POST,
// PUT, DELETE, HEAD, OPTIONS and PATCH of /public/**.
type vector struct {
	text string
	// reaches is the target that must arrive at the upstream: every server that conforms
	// to the RFC accepts the vector. "" for one that may be refused.
	reaches string
}

// strictUpstream records the bytes that it receives, and rejects everything that could be
// read in two ways.
type strictUpstream struct {
	addr netip.AddrPort

	mu    sync.Mutex
	heads []string
	wrong []string
}

func newStrictUpstream(t testing.TB, config *tls.Config) *strictUpstream {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	testenv.Must(t, err)
	u := &strictUpstream{addr: netip.MustParseAddrPort(listener.Addr().String())}
	if config != nil {
		listener = tls.NewListener(listener, config)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			stop := context.AfterFunc(t.Context(), func() { _ = c.Close() })
			serving.Go(func() {
				defer stop()
				defer c.Close()
				u.serve(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		serving.Wait()
	})
	return u
}

func (u *strictUpstream) serve(c net.Conn) {
	in := bufio.NewReader(c)
	for {
		head, err := readHead(in)
		if head == "" && err != nil {
			return
		}
		u.note(head, err)
		if err != nil {
			return
		}
		more := u.body(in, head)
		answer := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"
		if !more {
			answer += "Connection: close\r\n"
		}
		if answer += "\r\n"; !strings.HasPrefix(head, "HEAD ") {
			answer += "ok"
		}
		if _, err := io.WriteString(c, answer); err != nil || !more {
			return
		}
	}
}

func (u *strictUpstream) note(head string, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.heads = append(u.heads, head)
	if err != nil {
		u.wrong = append(u.wrong, fmt.Sprintf("%v: %q", err, head))
	}
}

// body reads the body that the head announces, and reports whether a further request may
// follow: bytes that were read ahead would be lost.
func (u *strictUpstream) body(in *bufio.Reader, head string) (more bool) {
	r, err := http.ReadRequest(bufio.NewReader(io.MultiReader(strings.NewReader(head), in)))
	if err == nil {
		_, err = io.Copy(io.Discard, r.Body)
	}
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		u.note(head, fmt.Errorf("body: %w", err))
	}
	return err == nil && len(r.TransferEncoding) == 0 && r.ContentLength <= 0
}

// take returns what has been recorded since the last call.
func (u *strictUpstream) take() (heads, wrong []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	heads, wrong = u.heads, u.wrong
	u.heads, u.wrong = nil, nil
	return heads, wrong
}

// readHead reads a head of HTTP/1.1, to its empty line.
func readHead(in *bufio.Reader) (string, error) {
	var head strings.Builder
	for {
		line, err := in.ReadString('\n')
		head.WriteString(line)
		switch {
		case err != nil:
			return head.String(), err
		case !strings.HasSuffix(line, "\r\n"):
			return head.String(), errors.New("a line ends in LF alone")
		case line == "\r\n":
			return head.String(), nil
		}
	}
}

var (
	requestLine = regexp.MustCompile(`^[A-Z]+ /public/[!-~]* HTTP/1\.1$`)
	fieldLine   = regexp.MustCompile("^([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([^\\x00-\\x08\\x0a-\\x1f\\x7f]*)$")
)

// wrongIn returns the part of a head that is ambiguous or not granted, and "" for a
// correct head.
func wrongIn(head, authority, authorization string) string {
	lines := strings.Split(strings.TrimSuffix(head, "\r\n\r\n"), "\r\n")
	if !requestLine.MatchString(lines[0]) {
		return "request line"
	}
	if !staysBelow(strings.Fields(lines[0])[1]) {
		return "path"
	}
	fields := map[string][]string{}
	for _, line := range lines[1:] {
		parts := fieldLine.FindStringSubmatch(line)
		if parts == nil {
			return fmt.Sprintf("field %q", line)
		}
		name := strings.ReplaceAll(strings.ToLower(parts[1]), "_", "-")
		fields[name] = append(fields[name], strings.TrimSpace(parts[2]))
	}
	one := func(name string) string { return strings.Join(fields[name], " and ") }
	length, coding := one("content-length"), one("transfer-encoding")
	switch {
	case one("host") != authority:
		return "host " + one("host")
	case authorization != "" && one("authorization") != authorization:
		return "authorization " + one("authorization")
	case coding != "" && (coding != "chunked" || length != ""):
		return "framing: " + coding + " and length " + length
	case strings.Trim(length, "0123456789") != "":
		return "length " + length
	}
	for _, name := range []string{"proxy-authorization", "proxy-connection", "keep-alive", "upgrade", "x-secret-hop"} {
		if fields[name] != nil {
			return "hop-by-hop " + name
		}
	}
	return ""
}

// staysBelow reports whether a target is below /public/ for a server that decodes it up
// to twice, takes a backslash for a slash, and drops text after a semicolon.
func staysBelow(target string) bool {
	read, _, _ := strings.Cut(target, "?")
	for range 3 {
		plain := strings.ReplaceAll(read, `\`, "/")
		for _, way := range []string{plain, regexp.MustCompile(`;[^/]*`).ReplaceAllString(plain, "")} {
			if clean := path.Clean(way); !strings.HasPrefix(clean+"/", "/public/") {
				return false
			}
		}
		next, err := url.PathUnescape(read)
		if err != nil {
			break
		}
		read = next
	}
	return true
}

// vectorWorld is a proxy with a strict upstream behind it.
type vectorWorld struct {
	*world
	upstream  *strictUpstream
	evil      *strictUpstream
	authority string
	tunnelled bool
	sent      int // requests that have reached the upstream
}

func newVectorWorld(t *testing.T, tunnelled bool) *vectorWorld {
	t.Helper()
	v := &vectorWorld{tunnelled: tunnelled}
	var config *tls.Config
	var ca string
	if tunnelled {
		authority := testenv.MustGet(testenv.NewCA("vectors"))(t)
		pair := testenv.MustGet(authority.Issue("api.weather.example"))(t)
		config, ca = &tls.Config{Certificates: []tls.Certificate{pair}}, string(authority.PEM())
	}
	v.upstream, v.evil = newStrictUpstream(t, config), newStrictUpstream(t, nil)
	r := authz.Rule{
		ID: "public", Reason: "a test", Methods: []string{"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"}, Paths: []string{"/public/**"},
		To: authz.To{
			Scheme: authz.SchemeHTTP, Hosts: []string{"api.weather.example"}, Ports: []uint16{v.upstream.addr.Port()},
			Addresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		},
	}
	if tunnelled {
		r.To.Scheme, r.To.TLS, r.Credential = authz.SchemeHTTPS, authz.TLS{CA: ca, CAFile: "ca.pem"}, "key"
	}
	v.world = newWorld(t, setup{input: granted(r)})
	v.authority = fmt.Sprintf("api.weather.example:%d", v.upstream.addr.Port())
	return v
}

// try writes a vector and checks the result.
func (v *vectorWorld) try(x vector) {
	v.t.Helper()
	prefix, authorization := "http://"+v.authority, ""
	if v.tunnelled {
		prefix, authorization = "", "Bearer "+apiKey
	}
	text := strings.NewReplacer(
		"{G}", v.authority, "{U}", prefix, "{E}", v.evil.addr.String(), "{P}", strconv.Itoa(int(v.upstream.addr.Port())),
	).Replace(x.text)
	answer := v.send(text, x.reaches != "")
	heads, wrong := v.upstream.take()
	for _, head := range heads {
		if what := wrongIn(head, v.authority, authorization); what != "" {
			wrong = append(wrong, what+" in "+strconv.Quote(head))
		}
	}
	if more, _ := v.evil.take(); len(more) > 0 {
		wrong = append(wrong, fmt.Sprintf("reached a host that is not granted: %q", more))
	}
	v.sent += len(heads)
	for _, w := range wrong {
		v.t.Errorf("wrong allow: %q: %s", text, w)
	}
	if x.reaches == "" {
		return
	}
	if fields := strings.Fields(answer); len(fields) < 2 || fields[1] != "200" && fields[1] != "100" || strings.Contains(answer, "HTTP/1.1 4") {
		v.t.Errorf("wrong deny: %q: %.400s", text, answer)
	} else if len(heads) == 0 || strings.Fields(heads[0])[1] != x.reaches {
		v.t.Errorf("wrong target: %q: the upstream was asked %q", text, heads)
	}
}

// finish checks that no more requests were sent than granted, in total: if a plugin
// disconnected before its answer, the request may arrive late.
func (v *vectorWorld) finish() {
	v.t.Helper()
	v.settled()
	heads, wrong := v.upstream.take()
	granted := 0
	for _, r := range v.records.of(authz.KindDecision) {
		if r.Allowed {
			granted++
		}
	}
	if sent := v.sent + len(heads); sent > granted || len(wrong) > 0 {
		v.t.Errorf("wrong allow: %d requests were sent for %d that were granted: %q", sent, granted, wrong)
	}
}

// patience is how long a test waits for an answer that may not come.
const patience = 250 * time.Millisecond

// send writes a text on a new connection and returns the answer. If none is expected and
// none comes, the plugin ends its side.
func (v *vectorWorld) send(text string, wanted bool) string {
	c := v.raw()
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	var half interface{ CloseWrite() error } = c.Conn.(*net.TCPConn)
	if v.tunnelled {
		if response := c.connect(v.authority); response.StatusCode != 200 {
			v.t.Fatalf("CONNECT: %s", response.Status)
		}
		c = c.tls("api.weather.example")
		half = c.Conn.(*tls.Conn)
	}
	_, _ = io.WriteString(c.Conn, text)
	var answer bytes.Buffer
	buf := make([]byte, 4096)
	for ended := false; ; {
		if !wanted {
			_ = c.Conn.SetReadDeadline(time.Now().Add(patience))
		}
		n, err := c.in.Read(buf)
		answer.Write(buf[:n])
		if timedOut := errors.Is(err, os.ErrDeadlineExceeded); timedOut && !ended {
			_ = half.CloseWrite()
			ended = true
			continue
		}
		if err != nil || answered(answer.String()) {
			return answer.String()
		}
	}
}

// answered reports whether a text ends in a whole final answer.
func answered(text string) bool {
	in := bufio.NewReader(strings.NewReader(text))
	for {
		r, err := http.ReadResponse(in, nil)
		if err != nil {
			return false
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return false
		}
		if r.StatusCode >= 200 && in.Buffered() == 0 && r.Close {
			return true
		}
		if r.StatusCode >= 200 && in.Buffered() == 0 {
			return true
		}
	}
}

// TestVectors sends the vectors of public lists about URLs, hosts, paths, headers and
// framing, and requests of ordinary clients, through both doors: no ambiguous or denied
// request reaches an upstream, and every request that the RFC requires servers to accept
// is accepted.
func TestVectors(t *testing.T) {
	for _, tunnelled := range []bool{false, true} {
		name := map[bool]string{false: "absolute", true: "tunnel"}[tunnelled]
		for group, vectors := range vectorGroups() {
			t.Run(name+" "+group, func(t *testing.T) {
				t.Parallel()
				v := newVectorWorld(t, tunnelled)
				for _, x := range vectors {
					v.try(x)
				}
				v.finish()
				t.Logf("%d vectors", len(vectors))
			})
		}
	}
}

// TestEmptyLineAfterPost sends the empty line that some clients add, which is not part of
// a request (RFC 9112, section 2.2).
func TestEmptyLineAfterPost(t *testing.T) {
	v := newVectorWorld(t, false)
	c := v.raw()
	for range 2 {
		c.write("POST http://" + v.authority + "/public/p HTTP/1.1\r\nHost: " + v.authority + "\r\nContent-Length: 1\r\n\r\nx\r\n")
		c.want(authz.Granted, "GET http://"+v.authority+"/public/g HTTP/1.1\r\nHost: "+v.authority+"\r\n\r\n")
		if response, body := c.read(); response.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s", response.Status, body)
		}
	}
}
