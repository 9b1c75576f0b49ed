// Command floods is a plugin that makes its sidecar hold as much as it can, of
// one kind, and stays. It prints "full" once it has got as far as it gets.
package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

var (
	host, plain, secure, tunnel = os.Getenv("E2E_HOST"), os.Getenv("E2E_PLAIN_PORT"), os.Getenv("E2E_SECURE_PORT"), os.Getenv("E2E_TCP_PORT")
	proxy                       = func() string { u, _ := url.Parse(os.Getenv("HTTP_PROXY")); return u.Host }()
	made                        atomic.Int64 // of what is flooded with
	kept                        sync.Map     // what must not be collected
)

func main() {
	kinds := map[string]func(){
		"nothing":       func() {},
		"connections":   func() { many(5000, func(net.Conn) error { return nil }) },
		"half-heads":    func() { many(5000, halfHead) },
		"hellos":        func() { many(5000, hello) },
		"handshakes":    func() { many(5000, handshake) },
		"tunnels":       func() { many(5000, func(c net.Conn) error { return connect(c, host+":"+tunnel) }) },
		"requests":      func() { many(5000, func(c net.Conn) error { return get(c, "/open/stall") }) },
		"downloads":     func() { many(5000, func(c net.Conn) error { return get(c, "/open/endless") }) },
		"answers-heads": func() { many(5000, func(c net.Conn) error { return get(c, "/open/head") }) },
		"uploads-h2":    func() { many(150, func(c net.Conn) error { return streams(c, "POST", "/open/stall", 0, 60<<10) }) },
		"heads-h2":      func() { many(150, func(c net.Conn) error { return streams(c, "GET", "/open/stall", 50<<10, 0) }) },
		"downloads-h2":  func() { many(150, downloads) },
		"frames-h2":     func() { many(5000, bigFrame) },
		"resets-h2":     func() { go many(50, resets); time.Sleep(4 * time.Second) },
		"names":         func() { go names(); go names(); time.Sleep(4 * time.Second) },
	}
	flood, ok := kinds[os.Args[1]]
	if !ok {
		os.Exit(2)
	}
	flood()
	fmt.Println("full", made.Load())
	time.Sleep(time.Hour)
}

// many opens connections to the proxy, 32 at a time, does something on each and
// keeps it.
func many(n int, do func(net.Conn) error) {
	var opening sync.WaitGroup
	turns := make(chan struct{}, 32)
	late := time.After(20 * time.Second)
	for i := range n {
		select {
		case turns <- struct{}{}:
		case <-late:
			return
		}
		opening.Go(func() {
			defer func() { <-turns }()
			c, err := net.DialTimeout("tcp", proxy, 5*time.Second)
			if err != nil {
				return
			}
			kept.Store(i, c)
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			if do(c) == nil {
				made.Add(1)
			}
		})
	}
	opening.Wait()
}

func halfHead(c net.Conn) error {
	_, err := fmt.Fprintf(c, "GET http://%s:%s/open/hello HTTP/1.1\r\nHost: %[1]s:%[2]s\r\n%s", host, plain,
		strings.Repeat("X-Header: "+strings.Repeat("x", 1000)+"\r\n", 58))
	return err
}

func connect(c net.Conn, to string) error {
	if _, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", to); err != nil {
		return err
	}
	line, err := bufio.NewReaderSize(c, 16).ReadString('\n')
	if err == nil && !strings.Contains(line, " 200 ") {
		err = fmt.Errorf("answer is %s", line)
	}
	buf := make([]byte, 64) // the rest of a short head
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	_, _ = c.Read(buf)
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	return err
}

// hello sends nearly all of a long ClientHello.
func hello(c net.Conn) error {
	if err := connect(c, host+":"+secure); err != nil {
		return err
	}
	text := append([]byte{1, 0, 0xf0, 0}, make([]byte, 0xf000-100)...) // handshake: client_hello, 60 KiB
	for len(text) > 0 {
		n := min(len(text), 16<<10)
		if _, err := c.Write(append([]byte{22, 3, 1, byte(n >> 8), byte(n)}, text[:n]...)); err != nil {
			return err
		}
		text = text[n:]
	}
	return nil
}

func handshake(c net.Conn) error {
	if err := connect(c, host+":"+secure); err != nil {
		return err
	}
	return tls.Client(c, &tls.Config{ServerName: host, InsecureSkipVerify: true, NextProtos: []string{"h2"}}).Handshake()
}

func get(c net.Conn, path string) error {
	_, err := fmt.Fprintf(c, "GET http://%s:%s%s HTTP/1.1\r\nHost: %[1]s:%[2]s\r\n\r\n", host, plain, path)
	return err
}

// session speaks HTTP/2 on a connection and reads what comes.
func session(c net.Conn) *http2.Framer {
	_, _ = io.WriteString(c, http2.ClientPreface)
	f := http2.NewFramer(c, c)
	_ = f.WriteSettings()
	_ = c.SetDeadline(time.Now().Add(time.Hour))
	go func() { _, _ = io.Copy(io.Discard, c) }()
	return f
}

func head(method, scheme, authority, path string, more int) []byte {
	var text bytes.Buffer
	e := hpack.NewEncoder(&text)
	for _, field := range [][2]string{{":method", method}, {":scheme", scheme}, {":authority", authority}, {":path", path}} {
		_ = e.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]})
	}
	for i := 0; i < more; i += 1000 {
		_ = e.WriteField(hpack.HeaderField{Name: fmt.Sprintf("x-%d", i), Value: strings.Repeat("\x7f|", 1) + strings.Repeat("x", 1000), Sensitive: true})
	}
	return bytes.ReplaceAll(text.Bytes(), []byte("\x7f|"), []byte("xx"))
}

// streams opens streams that the upstream does not answer.
func streams(c net.Conn, method, path string, header, body int) error {
	f := session(c)
	for i := range 250 {
		id := uint32(2*i + 1)
		block := head(method, "http", host+":"+plain, path, header)
		first := block[:min(len(block), 16<<10)]
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: first, EndHeaders: len(first) == len(block), EndStream: body == 0}); err != nil {
			return err
		}
		for block = block[len(first):]; len(block) > 0; {
			n := min(len(block), 16<<10)
			if err := f.WriteContinuation(id, n == len(block), block[:n]); err != nil {
				return err
			}
			block = block[n:]
		}
		made.Add(1)
	}
	for sent := 0; sent < body; sent += 4 << 10 { // up to the window of the connection
		for i := range 16 {
			if err := f.WriteData(uint32(2*i+1), false, make([]byte, 4<<10)); err != nil {
				return err
			}
		}
	}
	return nil
}

// downloads asks for answers without end over HTTP/2, and takes none of them.
func downloads(c net.Conn) error {
	if err := connect(c, host+":"+secure); err != nil {
		return err
	}
	t := tls.Client(c, &tls.Config{ServerName: host, InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err := t.Handshake(); err != nil {
		return err
	}
	f := session(t)
	for i := range 250 {
		if err := f.WriteHeaders(http2.HeadersFrameParam{
			StreamID: uint32(2*i + 1), BlockFragment: head("GET", "https", host+":"+secure, "/open/endless", 0), EndHeaders: true, EndStream: true,
		}); err != nil {
			return err
		}
		made.Add(1)
	}
	return nil
}

// bigFrame announces the longest frame there is and sends much of it.
func bigFrame(c net.Conn) error {
	f := session(c)
	if err := f.WriteHeaders(http2.HeadersFrameParam{
		StreamID: 1, BlockFragment: head("POST", "http", host+":"+plain, "/open/stall", 0), EndHeaders: true,
	}); err != nil {
		return err
	}
	_, err := c.Write(append([]byte{0x0f, 0xff, 0xff, 0, 0, 0, 0, 0, 1}, make([]byte, 64<<10)...))
	return err
}

func resets(c net.Conn) error {
	f := session(c)
	for id := uint32(1); ; id += 2 {
		if err := f.WriteHeaders(http2.HeadersFrameParam{
			StreamID: id, BlockFragment: head("GET", "http", host+":"+plain, "/open/stall", 4<<10), EndHeaders: true, EndStream: true,
		}); err != nil {
			return err
		}
		if err := f.WriteRSTStream(id, http2.ErrCodeCancel); err != nil {
			return err
		}
		made.Add(1)
	}
}

func names() {
	config, _ := os.ReadFile("/etc/resolv.conf")
	_, server, _ := strings.Cut(string(config), "nameserver ")
	server, _, _ = strings.Cut(server, "\n")
	c, err := net.Dial("udp", net.JoinHostPort(server, "53"))
	if err != nil {
		return
	}
	for {
		n := made.Add(1)
		name := dnsmessage.MustNewName(fmt.Sprintf("n%d.wild.test.example.", n))
		m := dnsmessage.Message{Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
		packed, _ := m.Pack()
		_, _ = c.Write(packed)
	}
}
