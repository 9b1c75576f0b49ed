package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"
)

// closeWriter is a connection whose sending half can be closed.
type closeWriter interface {
	net.Conn
	CloseWrite() error
}

// dial connects to the host of a URL: through the proxy that the environment
// names for it, as programs that tunnel do.
func dial(target *url.URL) (closeWriter, error) {
	address := target.Host
	if target.Port() == "" {
		address = net.JoinHostPort(target.Hostname(), map[string]string{"http": "80", "https": "443", "ws": "80"}[target.Scheme])
	}
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: &url.URL{Scheme: "https", Host: address}})
	if err != nil || proxy == nil {
		return tcp(address, err)
	}
	conn, err := tcp(proxy.Host, nil)
	if err != nil {
		return nil, err
	}
	head := "CONNECT " + address + " HTTP/1.1\r\nHost: " + address + "\r\n"
	if proxy.User != nil {
		head += "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(proxy.User.String())) + "\r\n"
	}
	if _, err := io.WriteString(conn, head+"\r\n"); err != nil {
		return nil, err
	}
	answer := make([]byte, 0, 4096)
	for !strings.HasSuffix(string(answer), "\r\n\r\n") { // byte by byte: what follows is the upstream's
		if _, err := conn.Read(answer[len(answer) : len(answer)+1]); err != nil {
			return nil, err
		}
		answer = answer[:len(answer)+1]
	}
	if !strings.Contains(string(answer), " 200 ") {
		return nil, fmt.Errorf("CONNECT: %s", answer)
	}
	return conn, nil
}

func tcp(address string, err error) (closeWriter, error) {
	if err != nil {
		return nil, err
	}
	conn, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// halfClose: URL SIZE: sends SIZE bytes, closes its half, and reads to the end. With
// https it does so within TLS.
func halfClose(r *report, args []string) {
	target, err := url.Parse(args[0])
	if err != nil {
		r.fail(err)
		return
	}
	conn, err := dial(target)
	if err != nil {
		r.fail(err)
		return
	}
	defer conn.Close()
	if target.Scheme == "https" {
		secured := tls.Client(conn, &tls.Config{ServerName: target.Hostname()})
		converse(r, secured, args[1])
		return
	}
	converse(r, conn, args[1])
}

func converse(r *report, conn closeWriter, size string) {
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.Copy(conn, body([]string{size})); err != nil {
		r.fail(err)
		return
	}
	if err := conn.CloseWrite(); err != nil {
		r.fail(err)
		return
	}
	r.fail(read(r, conn, ""))
}

// upgrade: URL PROTOCOL SIZE [SENTENCE]: asks for an upgrade and then converses as
// halfClose does; without a 101 it reads the answer.
func upgrade(r *report, args []string) {
	target, err := url.Parse(args[0])
	if err != nil {
		r.fail(err)
		return
	}
	conn, err := dial(target)
	if err != nil {
		r.fail(err)
		return
	}
	defer conn.Close()
	stream := conn
	if target.Scheme == "https" {
		stream = tls.Client(conn, &tls.Config{ServerName: target.Hostname(), NextProtos: []string{"http/1.1"}})
	}
	fmt.Fprintf(stream, "POST %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: %s\r\nContent-Length: 0\r\n\r\n", target.RequestURI(), target.Host, args[1])
	buffered := bufio.NewReader(stream)
	resp, err := http.ReadResponse(buffered, &http.Request{Method: http.MethodPost})
	if err != nil {
		r.fail(err)
		return
	}
	r.set("status", resp.StatusCode)
	r.set("upgrade", resp.Header.Get("Upgrade"))
	if resp.StatusCode != http.StatusSwitchingProtocols {
		r.fail(read(r, resp.Body, ""))
		return
	}
	converse(r, joined{stream, buffered}, args[2])
}

// joined reads what was read ahead first.
type joined struct {
	closeWriter
	reader io.Reader
}

func (j joined) Read(p []byte) (int, error) { return j.reader.Read(p) }

// webSocket: URL: greets, and reads until the other side closes.
func webSocket(r *report, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	options := &websocket.DialOptions{CompressionMode: websocket.CompressionContextTakeover, Subprotocols: []string{"chat", "other"}}
	conn, resp, err := websocket.Dial(ctx, args[0], options)
	if resp != nil {
		r.set("status", resp.StatusCode)
	}
	if err != nil {
		r.fail(err)
		return
	}
	defer conn.CloseNow()
	conn.SetReadLimit(1 << 22)
	r.set("subprotocol", conn.Subprotocol())
	for i, message := range []string{"hello", strings.Repeat("long ", 50_000), "close " + os.Getenv("CODE")} {
		if err := conn.Write(ctx, websocket.MessageText, []byte(message)); err != nil {
			r.fail(err)
			return
		}
		kind, answer, err := conn.Read(ctx)
		if status := websocket.CloseStatus(err); status != -1 {
			r.set("close", int(status))
			return
		}
		if err != nil {
			r.fail(err)
			return
		}
		r.set("message "+strconv.Itoa(i), fmt.Sprint(kind, " ", digest(answer)))
	}
}
