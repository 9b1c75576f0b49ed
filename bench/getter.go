package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// getter sends GETs that were written beforehand, and has a connection for each
// caller.
type getter struct {
	conns    []net.Conn
	requests [][]byte
}

// newGetter sends those requests of a site that are to be allowed.
func newGetter(o order, s *site) (*getter, error) {
	g := &getter{}
	for _, r := range s.Requests {
		if !r.Allowed {
			continue
		}
		host, target := r.Host+o.Port, r.Path
		if o.Port != "" {
			target = "http://" + host + r.Path
		}
		g.requests = append(g.requests, []byte("GET "+target+" HTTP/1.1\r\nHost: "+host+"\r\nUser-Agent: weather-cards/2.11.0\r\nAccept: application/json\r\n"+o.Header+"\r\n"))
	}
	network, address, _ := strings.Cut(o.Get, ":")
	for range o.Callers {
		conn, err := net.DialTimeout(network, address, 5*time.Second) //nolint:noctx // of this machine, bounded
		if err != nil {
			g.close()
			return nil, err
		}
		g.conns = append(g.conns, conn)
	}
	return g, nil
}

func (g *getter) close() {
	for _, conn := range g.conns {
		_ = conn.Close()
	}
}

func (g *getter) run(o order) (*tally, error) {
	begun := time.Now()
	tallies, errs := make([]tally, len(g.conns)), make([]error, len(g.conns))
	var wg sync.WaitGroup
	for i, conn := range g.conns {
		wg.Go(func() {
			errs[i] = conn.SetDeadline(begun.Add(o.Length + time.Minute))
			in := bufio.NewReaderSize(conn, 8<<10)
			for turn := i * 31; errs[i] == nil && time.Since(begun) < o.Length; turn++ {
				sent := time.Now()
				errs[i] = exchange(conn, in, g.requests[turn%len(g.requests)])
				tallies[i].took = append(tallies[i].took, time.Since(sent))
			}
		})
	}
	wg.Wait()
	all := &tally{}
	for _, t := range tallies {
		all.took = append(all.took, t.took...)
	}
	all.done = len(all.took)
	return all, errors.Join(errs...)
}

// exchange sends a request and reads its answer, which must be the origin's.
func exchange(conn net.Conn, in *bufio.Reader, request []byte) error {
	if _, err := conn.Write(request); err != nil {
		return err
	}
	status, err := in.ReadSlice('\n')
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if !bytes.HasPrefix(status, []byte("HTTP/1.1 200 ")) {
		why := string(status)
		rest, _ := in.Peek(min(in.Buffered(), 1000))
		return fmt.Errorf("answered %q %s to %q", why, rest, request)
	}
	length := -1
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("read answer: %w", err)
		}
		if len(line) == 2 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		if len(name) == len("content-length") && strings.EqualFold(string(name), "content-length") {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return err
			}
		}
	}
	if length != originBody {
		return fmt.Errorf("the answer has %d bytes of body", length)
	}
	_, err = in.Discard(length)
	return err
}

// originBody is how many bytes the plain origin answers with.
const originBody = 1024

// plainOrigin answers every request on a connection in the same way, with as
// little work as there can be: it shares its CPU with the load.
func plainOrigin(l net.Listener) error {
	answer := []byte(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", originBody) +
		`{"forecast":"` + strings.Repeat("r", originBody-len(`{"forecast":""}`)) + `"}`)
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer func() { _ = conn.Close() }()
			in := bufio.NewReaderSize(conn, 8<<10)
			for {
				line, err := in.ReadSlice('\n')
				if err != nil {
					if !errors.Is(err, io.EOF) {
						_, _ = io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
					}
					return
				}
				if len(line) > 2 {
					continue
				}
				if _, err := conn.Write(answer); err != nil {
					return
				}
			}
		}()
	}
}

// plainHop forwards every connection to an address, with as little work as a process
// between two sockets can do: it is the floor of an egress socket.
func plainHop(l net.Listener, address string) error {
	for {
		near, err := l.Accept()
		if err != nil {
			return err
		}
		far, err := net.DialTimeout("tcp", address, 5*time.Second) //nolint:noctx // of this machine, bounded
		if err != nil {
			return errors.Join(err, near.Close())
		}
		pass := func(to, from net.Conn) {
			_, _ = io.Copy(to, from)
			_ = errors.Join(to.Close(), from.Close())
		}
		go pass(far, near)
		go pass(near, far)
	}
}
