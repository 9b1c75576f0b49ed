package proxy_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/coder/websocket"
	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc"
	grpcgzip "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// compressed returns a text in a content coding, or several, or in two members of
// one.
func compressed(t testing.TB, coding, text string) []byte {
	t.Helper()
	if first, rest, ok := strings.Cut(coding, ","); ok {
		return compressed(t, rest, string(compressed(t, first, text)))
	}
	if one, ok := strings.CutSuffix(coding, " twice"); ok {
		half := len(text) / 2
		return append(compressed(t, one, text[:half]), compressed(t, one, text[half:])...)
	}
	var b bytes.Buffer
	var w io.WriteCloser
	switch coding {
	case "gzip", "x-gzip":
		w = gzip.NewWriter(&b)
	case "deflate":
		w = zlib.NewWriter(&b)
	case "raw":
		raw, err := flate.NewWriter(&b, flate.DefaultCompression)
		testenv.Must(t, err)
		w = raw
	case "br":
		w = brotli.NewWriter(&b)
	case "zstd":
		encoder, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1))
		testenv.Must(t, err)
		w = encoder
	default:
		return []byte(text)
	}
	_, err := io.WriteString(w, text)
	testenv.Must(t, err)
	testenv.Must(t, w.Close())
	return b.Bytes()
}

// echoer returns the credential that it received, in every way that the path requests.
func echoer(t testing.TB) *httptest.Server {
	t.Helper()
	text := fmt.Sprintf("before %s after", apiKey)
	bombs := sync.OnceValue(func() map[string][]byte { // they take seconds of CPU under the race detector
		all := map[string][]byte{}
		for _, coding := range []string{"gzip", "deflate", "br", "zstd"} {
			all[coding] = compressed(t, coding, strings.Repeat("\x00", 32<<20))
		}
		return all
	})
	api := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "application/json")
		h.Set("X-Asked-Encoding", strings.Join(r.Header["Accept-Encoding"], ","))
		h.Set("X-Asked-Range", strings.Join(r.Header["Range"], "|"))
		kind, what, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		switch kind {
		case "coded":
			said := strings.TrimSuffix(what, " twice")
			h.Set("Content-Encoding", strings.Replace(said, "raw", "deflate", 1))
			h.Set("Etag", `"strong"`)
			h.Set("Content-Digest", "sha-256=:x:")
			_, _ = w.Write(compressed(t, what, text))
		case "bomb":
			h.Set("Content-Encoding", what)
			_, _ = w.Write(bombs()[what])
		case "file":
			http.ServeContent(w, r, "x.json", time.Time{}, strings.NewReader(text))
		case "lines": // of base64, as octets, with a byte that text does not have
			h.Set("Content-Type", "application/octet-stream")
			encoded := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", 40) + text))
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader(strings.Repeat("text ", 200)+"\x00"+encoded[:76]+"\r\n"+encoded[76:]))
		case "part":
			h.Set("Content-Range", "bytes 7-20/100")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = io.WriteString(w, apiKey)
		case "slow": // in two pieces, with a pause between that is longer than any that is waited for
			h.Set("Content-Length", strconv.Itoa(len(text)))
			cut, _ := strconv.Atoi(what)
			_, _ = io.WriteString(w, text[:cut])
			_ = http.NewResponseController(w).Flush()
			time.Sleep(30 * time.Millisecond)
			_, _ = io.WriteString(w, text[cut:])
		case "as": // of this type
			h["Content-Type"] = r.URL.Query()["type"]
			if coding := r.URL.Query().Get("coding"); coding != "" {
				h.Set("Content-Encoding", coding)
			}
			_, _ = w.Write(compressed(t, what, r.URL.Query().Get("begin")+text))
		case "spelled":
			_, _ = io.WriteString(w, "x"+map[string]string{
				"hex": hex.EncodeToString([]byte(text)), "base64": base64.StdEncoding.EncodeToString([]byte(text)),
				"json": escapedWhole(apiKey), "utf16": "w\x00k\x00_\x00" + strings.Join(strings.Split(apiKey[3:], ""), "\x00") + "\x00",
			}[what])
		}
	}))
	api.EnableHTTP2 = true
	api.StartTLS()
	t.Cleanup(api.Close)
	return api
}

// escapedWhole is text in JSON with every character escaped.
func escapedWhole(text string) string {
	var b strings.Builder
	for _, r := range text {
		fmt.Fprintf(&b, `\u%04x`, r)
	}
	return b.String()
}

// wantNoKey checks that what a plugin received holds no piece of the
// credential, but for pieces as short as chance makes them.
func wantNoKey(t testing.TB, response *http.Response, body string) {
	t.Helper()
	all := fmt.Sprint(response.Header, body, response.Trailer)
	for _, text := range []string{apiKey, apiKey[:8], apiKey[6:], hex.EncodeToString([]byte(apiKey))} {
		if strings.Contains(all, text) {
			t.Errorf("the plugin sees the credential: %s", all)
		}
	}
}

// TestCodedAnswers has an upstream compress although the request accepts no coding.
func TestCodedAnswers(t *testing.T) {
	api := echoer(t)
	w := newWorld(t, setup{input: granted(ruleFor(api))})
	for name, change := range map[string]func(*http.Transport){"HTTP/1.1": nil, "HTTP/2": withHTTP2} {
		client := w.client(func(t *http.Transport) {
			t.DisableCompression = true
			if change != nil {
				change(t)
			}
		})
		for _, coding := range []string{
			"gzip", "x-gzip", "deflate", "raw", "br", "zstd", "identity", "gzip twice", "zstd twice",
		} {
			t.Run(name+" "+coding, func(t *testing.T) {
				r := request(t, "GET", urlOf(api, "/coded/"+coding), "")
				r.Header["Accept-Encoding"] = []string{"gzip, br"}
				response, body := send(t, client, r)
				wantNoKey(t, response, body)
				if body != "before "+strings.Repeat("*", len(apiKey))+" after" || response.Header.Get("X-Asked-Encoding") != "identity" {
					t.Errorf("answer is %q, %v", body, response.Header)
				}
				want := `W/"strong"`
				if coding == "identity" {
					want = `"strong"`
				} else if response.Header["Content-Encoding"] != nil || response.Header["Content-Digest"] != nil {
					t.Errorf("header is %v", response.Header)
				}
				if response.Header.Get("Etag") != want {
					t.Errorf("Etag is %s", response.Header.Get("Etag"))
				}
			})
		}
		for _, coding := range []string{"compress", "gzip,br", "zstd,identity,gzip,raw"} { // unknown, or several over one another
			t.Run(name+" "+coding, func(t *testing.T) {
				response, body := send(t, client, request(t, "GET", urlOf(api, "/coded/"+coding), ""))
				wantNoKey(t, response, body)
				wantRefusal(t, response, body, authz.UpstreamUnreachable)
			})
		}
		t.Run(name+" HEAD", func(t *testing.T) {
			if response, _ := send(t, client, request(t, "HEAD", urlOf(api, "/coded/gzip"), "")); response.StatusCode != 200 {
				t.Errorf("answer is %s", response.Status)
			}
		})
		for _, coding := range []string{"gzip", "deflate", "br", "zstd"} {
			t.Run(name+" bomb of "+coding, func(t *testing.T) {
				response, err := client.Do(request(t, "GET", urlOf(api, "/bomb/"+coding), ""))
				testenv.Must(t, err)
				defer response.Body.Close()
				if n, err := io.Copy(io.Discard, response.Body); err == nil || n > 8<<20 {
					t.Errorf("%d bytes came out of the bomb, %v", n, err)
				}
			})
		}
	}
}

// TestSlowEcho has the credential come in two pieces of an answer with a Content-Length.
func TestSlowEcho(t *testing.T) {
	api := echoer(t)
	w := newWorld(t, setup{input: granted(ruleFor(api))})
	clean := "before " + strings.Repeat("*", len(apiKey)) + " after"
	for name, change := range map[string]func(*http.Transport){"HTTP/1.1": nil, "HTTP/2": withHTTP2} {
		client := w.client(change)
		for cut := range len(clean) {
			response, body := send(t, client, request(t, "GET", urlOf(api, "/slow/"+strconv.Itoa(cut)), ""))
			if body != clean || response.ContentLength != int64(len(clean)) {
				t.Errorf("%s, cut at %d: %q, %v", name, cut, body, response.Header)
			}
		}
	}
}

// TestParts asks for every part of a content with the credential in it.
func TestParts(t *testing.T) {
	api := echoer(t)
	w := newWorld(t, setup{input: granted(ruleFor(api))})
	client := w.client(nil)
	clean := "before " + strings.Repeat("*", len(apiKey)) + " after"
	ask := func(method, path, header string) (*http.Response, string) {
		r := request(t, method, urlOf(api, path), "")
		r.Header["Range"] = []string{header}
		return send(t, client, r)
	}
	for first := range len(clean) {
		for _, last := range []int{first, first + 4, len(clean) - 1} {
			last = min(last, len(clean)-1)
			response, body := ask("GET", "/file", fmt.Sprintf("bytes=%d-%d", first, last))
			if response.StatusCode != 206 || body != clean[first:last+1] || response.ContentLength != int64(len(body)) ||
				response.Header.Get("Content-Range") != fmt.Sprintf("bytes %d-%d/%d", first, last, len(clean)) {
				t.Fatalf("%d-%d: %s %q, %v", first, last, response.Status, body, response.Header)
			}
		}
		if _, body := ask("GET", "/file", fmt.Sprintf("bytes=-%d", first+1)); body != clean[len(clean)-first-1:] {
			t.Fatalf("the last %d are %q", first+1, body)
		}
	}
	for name, test := range map[string]struct {
		method, path, header string
		status               int
		body                 string
	}{
		"beyond the end":         {"GET", "/file", "bytes=" + strconv.Itoa(len(clean)) + "-", 416, ""},
		"several":                {"GET", "/file", "bytes=0-8,9-12", 200, clean},
		"of another unit":        {"GET", "/file", "items=0-8", 200, clean},
		"not of a GET":           {"POST", "/file", "bytes=9-12", 200, clean},
		"nothing known of it":    {"GET", "/as/x?type=text/plain", "bytes=9-12", 200, clean},
		"a part that is another": {"GET", "/part", "bytes=0-3", 502, ""},
		"a part unasked":         {"POST", "/part", "", 502, ""},
	} {
		response, body := ask(test.method, test.path, test.header)
		if wantNoKey(t, response, body); response.StatusCode != test.status || test.body != "" && body != test.body {
			t.Errorf("%s: %s %q", name, response.Status, body)
		}
	}
}

// TestPartsInLines puts together the parts of a content in which the end of a line splits
// the credential.
func TestPartsInLines(t *testing.T) {
	api := echoer(t)
	w := newWorld(t, setup{input: granted(ruleFor(api))})
	client := w.client(nil)
	_, whole := send(t, client, request(t, "GET", urlOf(api, "/lines"), ""))
	if !strings.Contains(whole, strings.Repeat("*", 23)+"IGFmdGVy") { // the end of the line too
		t.Fatalf("content is %q", whole)
	}
	for first := 950; first < len(whole); first++ {
		for _, size := range []int{1, 7, len(whole)} {
			r := request(t, "GET", urlOf(api, "/lines"), "")
			r.Header["Range"] = []string{fmt.Sprintf("bytes=%d-%d", first, first+size-1)}
			response, body := send(t, client, r)
			if want := whole[first:min(len(whole), first+size)]; response.StatusCode != http.StatusPartialContent || body != want {
				t.Fatalf("%d bytes from %d: %s %q instead of %q", size, first, response.Status, body, want)
			}
		}
	}
}

// TestSpellingsAndTypes has the credential come back in other encodings, and as content
// of every type.
func TestSpellingsAndTypes(t *testing.T) {
	api := echoer(t)
	w := newWorld(t, setup{input: granted(ruleFor(api))})
	client := w.client(withHTTP2)
	kinds := []string{
		"text/csv", "text/html; charset=utf-8", "application/xml", "application/vnd.x+json", "image/svg+xml", "application/x-unheard-of",
		"application/javascript", "multipart/mixed; boundary=x", "not a type", "application/grpc-web-text", "", "text/yaml",
		"application/x-www-form-urlencoded", "application/yaml", "application/problem+json", "application/x-ndjson", "application/json-seq",
		"application/octet-stream", "image/png", "video/mp4", "application/pdf", "application/zip",
	}
	for _, kind := range kinds {
		response, body := send(t, client, request(t, "GET", urlOf(api, "/as/x?type="+url.QueryEscape(kind)), ""))
		if wantNoKey(t, response, body); !strings.Contains(body, "****") {
			t.Errorf("%s: %q", kind, body)
		}
	}
	for _, spelling := range []string{"hex", "base64", "json", "utf16"} {
		if _, body := send(t, client, request(t, "GET", urlOf(api, "/spelled/"+spelling), "")); !strings.Contains(body, "********") {
			t.Errorf("%s: %q", spelling, body)
		}
	}
	w.settled()
	for _, record := range w.echoed() {
		if record.Kind != authz.KindEcho || strings.Contains(fmt.Sprintf("%+v", record), apiKey) {
			t.Errorf("record is %+v", record)
		}
	}
	if len(w.echoed()) != len(kinds)+4 {
		t.Errorf("%d echoes were recorded", len(w.echoed()))
	}
}

// TestTypesThatAreNotText searches content that is declared binary and is text, and
// leaves it unchanged if it is binary.
func TestTypesThatAreNotText(t *testing.T) {
	api := echoer(t)
	w := newWorld(t, setup{input: granted(ruleFor(api))})
	picture := "\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
	for name, change := range map[string]func(*http.Transport){"HTTP/1.1": nil, "HTTP/2": withHTTP2} {
		client := w.client(func(t *http.Transport) {
			t.DisableCompression = true
			if change != nil {
				change(t)
			}
		})
		for _, test := range []struct {
			kind, coding, said, begin string
			found                     bool
			left                      string // of Content-Encoding
		}{
			{kind: "application/octet-stream", found: true},
			{kind: "image/png", said: "gzip", found: true, left: "gzip"},
			{kind: "image/png", said: "compress", found: true, left: "compress"},
			{kind: "image/png", coding: "gzip", said: "gzip", found: true},
			{kind: "application/zip", coding: "br", said: "br", found: true},
			{kind: "image/png", begin: picture},
			{kind: "application/octet-stream", begin: "\x00"},
			{kind: "image/png", coding: "gzip", said: "gzip", begin: picture, left: "gzip"},
		} {
			query := url.Values{"type": {test.kind}, "coding": {test.said}, "begin": {test.begin}}.Encode()
			response, body := send(t, client, request(t, "GET", urlOf(api, "/as/"+test.coding+"?"+query), ""))
			if got := response.Header.Get("Content-Encoding"); got != test.left {
				t.Errorf("%s %+v: coded %q", name, test, got)
			}
			if test.found {
				if wantNoKey(t, response, body); !strings.Contains(body, "****") {
					t.Errorf("%s %+v: %q", name, test, body)
				}
				continue
			}
			if want := compressed(t, test.coding, test.begin+"before "+apiKey+" after"); body != string(want) {
				t.Errorf("%s %+v: %q", name, test, body)
			}
		}
	}
}

// TestEchoInMessages has the credential come back over gRPC, compressed as the
// plugin's own messages are, and over WebSocket.
func TestEchoInMessages(t *testing.T) {
	api := upstream(t, testenv.UpstreamConfig{})
	w := newWorld(t, setup{input: granted(rule(api, "read"))})
	clean := "the key " + strings.Repeat("*", len(apiKey))
	client := w.dialGRPC(fmt.Sprintf("api.weather.example:%d", api.Addr.Port()))
	for name, options := range map[string][]grpc.CallOption{"plain": nil, "gzip": {grpc.UseCompressor(grpcgzip.Name)}} {
		got := new(wrapperspb.StringValue)
		err := client.Invoke(t.Context(), testenv.EchoUnary, wrapperspb.String("the key "+apiKey), got, options...)
		if err != nil || got.GetValue() != clean {
			t.Errorf("%s: %q, %v", name, got.GetValue(), err)
		}
	}
	for _, mode := range []websocket.CompressionMode{websocket.CompressionDisabled, websocket.CompressionContextTakeover} {
		conn, response, err := websocket.Dial(t.Context(), api.URL("api.weather.example", "/ws"),
			&websocket.DialOptions{HTTPClient: w.client(nil), CompressionMode: mode})
		testenv.Must(t, err)
		if response.Header["Sec-Websocket-Extensions"] != nil {
			t.Errorf("extensions were agreed on: %v", response.Header)
		}
		for _, kind := range []websocket.MessageType{websocket.MessageText, websocket.MessageBinary} {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			testenv.Must(t, conn.Write(ctx, kind, []byte("the key "+apiKey)))
			if _, got, err := conn.Read(ctx); err != nil || string(got) != clean {
				t.Errorf("message is %q, %v", got, err)
			}
			cancel()
		}
		_ = conn.CloseNow()
	}
	w.settled()
	if n := len(w.echoed()); n != 4 {
		t.Errorf("%d echoes were recorded", n)
	}
}

// TestExtensionUnasked refuses a WebSocket for which the upstream accepted compression.
func TestExtensionUnasked(t *testing.T) {
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
			"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
		_, _ = io.Copy(io.Discard, conn)
	}))
	defer api.Close()
	r := ruleFor(api)
	r.Upgrades = []string{"websocket"}
	w := newWorld(t, setup{input: granted(r)})
	_, response, err := websocket.Dial(t.Context(), urlOf(api, "/"), &websocket.DialOptions{HTTPClient: w.client(nil)})
	if err == nil || response == nil || response.StatusCode != http.StatusBadGateway {
		t.Errorf("answer is %+v, %v", response, errors.Unwrap(err))
	}
}
