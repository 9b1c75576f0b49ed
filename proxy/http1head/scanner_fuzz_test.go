package http1head

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"testing"
	"testing/iotest"
)

// FuzzHeads reads requests as net/http does and compares what headReader has
// seen: the Host of each, or nothing at all.
func FuzzHeads(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET http://b/ HTTP/1.1\r\nHost: c\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: b\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nX: y\r\n\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\n",
		"GET / HTTP/1.1\nHost: a\n\nGET / HTTP/1.0\n\n", "GET / HTTP/1.1\r\nHost:\r\n a\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		heads := NewScanner(bytes.NewReader(sent), 64<<10)
		// One byte at a time, and only what is asked for: net/http reads ahead,
		// and so must the observer not depend on where reads end.
		in := bufio.NewReaderSize(iotest.OneByteReader(heads), 16)
		for range 8 {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			host, unclear := heads.Take(r)
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				return
			}
			if !unclear && r.URL.Host == "" && r.Method != http.MethodConnect && host != r.Host {
				t.Fatalf("%q: net/http sees the host %q, headReader %q", sent, r.Host, host)
			}
		}
	})
}
