package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"strconv"
	"strings"
	"time"
)

// classOfText finds the class of an error that has no type of its own.
func classOfText(text string) string {
	for _, c := range []struct{ part, class string }{
		{"stream error", "stream"},
		{"GOAWAY", "goaway"},
		{"x509:", "tls"},
		{"tls:", "tls"},
		{"malformed HTTP", "protocol"},
		{"server closed", "eof"},
		{"Client.Timeout", "timeout"},
	} {
		if strings.Contains(text, c.part) {
			if _, code, found := strings.Cut(text, "; "); found && c.class == "stream" {
				return "stream " + strings.Fields(code)[0]
			}
			return c.class
		}
	}
	return "other: " + text
}

func transport(version string) *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Protocols = new(http.Protocols)
	t.Protocols.SetHTTP1(version == "1")
	t.Protocols.SetHTTP2(version == "2")
	t.Protocols.SetUnencryptedHTTP2(version == "h2c")
	if version == "1" {
		t.TLSClientConfig = &tls.Config{NextProtos: []string{"http/1.1"}}
	}
	return t
}

// httpClient: VERSION METHOD URL [SIZE [chunked|SECONDS]]: SIZE bytes of a body, in
// chunks, or in ten pieces over a time. Headers come from the variable HEADERS.
func httpClient(r *report, args []string) {
	client := &http.Client{Transport: transport(args[0])}
	if limit := os.Getenv("LIMIT"); limit != "" {
		client.Timeout, _ = time.ParseDuration(limit)
	}
	exchange(r, client, args[1:], "")
}

func exchange(r *report, client *http.Client, args []string, prefix string) {
	interim := []string{}
	ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
			interim = append(interim, strconv.Itoa(code))
			for name, values := range header {
				r.set(fmt.Sprintf("%sinterim %d %s", prefix, code, strings.ToLower(name)), strings.Join(values, " | "))
			}
			return nil
		},
	})
	req, err := http.NewRequestWithContext(ctx, args[0], args[1], body(args[2:]))
	if err != nil {
		r.fail(err)
		return
	}
	if len(args) == 3 {
		req.ContentLength, _ = strconv.ParseInt(args[2], 10, 64)
	}
	for line := range strings.Lines(os.Getenv("HEADERS")) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		req.Header.Add(name, value)
	}
	if req.Header.Get("Trailer") != "" {
		req.Trailer = http.Header{"X-Sum": {"of the client"}}
		req.Header.Del("Trailer")
	}
	resp, err := client.Do(req)
	if err != nil {
		r.fail(err)
		return
	}
	defer resp.Body.Close()
	r.time(prefix + "head ")
	r.set(prefix+"status", resp.StatusCode)
	r.set(prefix+"interim", strings.Join(interim, " "))
	r.set(prefix+"length", resp.ContentLength)
	for name, values := range resp.Header {
		r.set(prefix+"header "+strings.ToLower(name), strings.Join(values, " | "))
	}
	r.fail(read(r, resp.Body, prefix))
	for name, values := range resp.Trailer {
		r.set(prefix+"trailer "+strings.ToLower(name), strings.Join(values, " | "))
	}
}

// read reads a body to its end.
func read(r *report, body io.Reader, prefix string) error {
	sum, begin, n := sha256.New(), bytes.Buffer{}, 0
	buffer := make([]byte, 64<<10)
	for {
		got, err := body.Read(buffer)
		if got > 0 {
			r.time(prefix + "first ")
			n += got
			sum.Write(buffer[:got])
			begin.Write(buffer[:min(got, max(0, 400-begin.Len()))])
		}
		if err == nil {
			continue
		}
		r.set(prefix+"body", fmt.Sprintf("%d bytes %s", n, hex.EncodeToString(sum.Sum(nil)[:8])))
		r.set("_"+prefix+"body", text(begin.Bytes()))
		if err == io.EOF {
			return nil
		}
		return err
	}
}

// body is what is sent: SIZE bytes, the same each time.
func body(args []string) io.Reader {
	if len(args) == 0 {
		return nil
	}
	size, _ := strconv.Atoi(args[0])
	whole := bytes.NewReader(bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size])
	if len(args) == 1 {
		return io.MultiReader(whole) // its length is set by hand, and it cannot be read again
	}
	if args[1] == "again" {
		return whole
	}
	seconds, _ := strconv.ParseFloat(args[1], 64)
	return slowly(whole, max(1, int64(size)/10), time.Duration(seconds*float64(time.Second)/10))
}

// slowly gives pieces with a pause before each, however much is read at once.
func slowly(whole io.Reader, piece int64, pause time.Duration) io.Reader {
	out, in := io.Pipe()
	go func() {
		for {
			time.Sleep(pause)
			if n, err := io.CopyN(in, whole, piece); err != nil || n == 0 {
				in.Close() // the reader sees the end
				return
			}
		}
	}()
	return out
}

// repeat: VERSION METHOD URL SIZE TIMES PAUSE [fresh|kept|at once]: the same request
// again and again; how many ended how.
func repeat(r *report, args []string) {
	times, _ := strconv.Atoi(args[4])
	pause, _ := time.ParseDuration(args[5])
	client := &http.Client{Transport: transport(args[0])}
	counts := map[string]int{}
	results := make(chan string, times)
	one := func(client *http.Client) {
		each := newReport()
		exchange(each, client, []string{args[1], args[2], args[3], "again"}, "")
		results <- each.fields["status"] + " " + each.fields["error"]
		if each.fields["error"] != "" || each.fields["status"] != "200" {
			r.set("_failed", each.fields)
		}
	}
	gate := make(chan struct{}, 16)
	for range times {
		if args[6] == "fresh" { // a connection of its own
			client = &http.Client{Transport: transport(args[0])}
		}
		if args[6] == "together" {
			gate <- struct{}{}
			go func() { one(client); <-gate }()
			continue
		}
		one(client)
		time.Sleep(pause)
	}
	for range times {
		counts[<-results]++
	}
	for kind, n := range counts {
		r.set("of "+strings.TrimSpace(kind), n)
	}
}

// login: URL: logs a connection in, as NTLM does, and looks who the same connection
// and another one are then.
func login(r *report, args []string) {
	jar, _ := cookiejar.New(nil)
	first, second := &http.Client{Transport: transport("1"), Jar: jar}, &http.Client{Transport: transport("1")}
	for i, step := range []struct {
		client *http.Client
		header string
	}{{first, ""}, {first, "NTLM first"}, {first, "NTLM second"}, {first, ""}, {second, ""}, {first, ""}} {
		each := newReport()
		if step.header != "" {
			os.Setenv("HEADERS", "Authorization: "+step.header)
		} else {
			os.Unsetenv("HEADERS")
		}
		exchange(each, step.client, []string{"GET", args[0]}, "")
		r.set(fmt.Sprintf("step %d", i), each.fields["status"]+" "+each.fields["_body"]+each.fields["error"])
	}
}
