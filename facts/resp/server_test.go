package resp

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// server is a connection to a running Redis of the test's own.
type server struct {
	conn net.Conn
	r    *bufio.Reader
}

func startServer(t testing.TB) *server {
	t.Helper()
	return startVersion(t, "")
}

// startVersion starts another version than the system's.
func startVersion(t testing.TB, version string) *server {
	t.Helper()
	testenv.Require(t, testenv.RedisServer())
	redis := testenv.MustRedis(t, testenv.RedisConfig{Version: version})
	conn, err := net.Dial("tcp", redis.Addr.String())
	testenv.Must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	s := &server{conn: conn, r: bufio.NewReader(conn)}
	if got := s.do(t, "AUTH", redis.Password); got != "OK" {
		t.Fatalf("AUTH is answered %v", got)
	}
	return s
}

// request returns a command as the array of bulk strings that a client sends.
func request(args ...string) []byte {
	b := fmt.Appendf(nil, "*%d\r\n", len(args))
	for _, a := range args {
		b = fmt.Appendf(b, "$%d\r\n%s\r\n", len(a), a)
	}
	return b
}

// do sends a command and returns its answer: nil, string, int64, []any or error.
func (s *server) do(t testing.TB, args ...string) any {
	t.Helper()
	if _, err := s.conn.Write(request(args...)); err != nil {
		t.Fatal(err)
	}
	v, err := answer(s.r)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// all sends commands in one write and returns their answers.
func (s *server) all(t testing.TB, commands [][]string) []any {
	t.Helper()
	var b []byte
	for _, args := range commands {
		b = append(b, request(args...)...)
	}
	if _, err := s.conn.Write(b); err != nil {
		t.Fatal(err)
	}
	answers := make([]any, len(commands))
	for i := range answers {
		v, err := answer(s.r)
		if err != nil {
			t.Fatal(err)
		}
		answers[i] = v
	}
	return answers
}

func (s *server) version(t testing.TB) string {
	t.Helper()
	for line := range strings.Lines(s.do(t, "INFO", "server").(string)) {
		if v, ok := strings.CutPrefix(line, "redis_version:"); ok {
			return strings.TrimSpace(v)
		}
	}
	t.Fatal("INFO states no version")
	return ""
}

func answer(r *bufio.Reader) (any, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return nil, err
	}
	line = strings.TrimSuffix(line, "\r\n")
	switch rest := line[1:]; line[0] {
	case '+':
		return rest, nil
	case '-':
		return fmt.Errorf("%s", rest), nil
	case ':':
		return strconv.ParseInt(rest, 10, 64)
	case '$':
		n, err := strconv.Atoi(rest)
		if err != nil || n < 0 {
			return nil, err
		}
		b := make([]byte, n+2)
		_, err = io.ReadFull(r, b)
		return string(b[:n]), err
	case '*':
		n, err := strconv.Atoi(rest)
		list := make([]any, 0, max(n, 0))
		for range n {
			v, err := answer(r)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		return list, err
	}
	return nil, fmt.Errorf("answer %q", line)
}
