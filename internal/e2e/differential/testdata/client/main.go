// Command client runs the clients of the differential tests, and is some of them:
//
//	client runner               runs jobs, one JSON object a line, from its standard input
//	client http|grpc|tcp|...    does one thing and prints what it saw, one JSON object
//
// A client reports fields, names and texts. Those that end in "seconds" are times
// since the request began.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: client runner|http|grpc|tcp|upgrade|websocket ...")
		os.Exit(2)
	}
	if os.Args[1] == "runner" {
		if err := serve(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "runner:", err)
			os.Exit(1)
		}
		return
	}
	clients := map[string]func(*report, []string){
		"http": httpClient, "repeat": repeat, "login": login, "grpc": grpcClient, "tcp": halfClose, "upgrade": upgrade, "websocket": webSocket, "h2": framed,
	}
	do, found := clients[os.Args[1]]
	if !found {
		fmt.Fprintf(os.Stderr, "client: there is no client %q\n", os.Args[1])
		os.Exit(2)
	}
	r := newReport()
	do(r, os.Args[2:])
	r.print()
}

// report collects what a client saw.
type report struct {
	mu     sync.Mutex
	begun  time.Time
	fields map[string]string
}

func newReport() *report { return &report{begun: time.Now(), fields: map[string]string{}} }

func (r *report) set(name string, value any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fields[name] = fmt.Sprint(value)
}

// time notes that something happened now; of several times the first counts.
func (r *report) time(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if name += "seconds"; r.fields[name] == "" {
		r.fields[name] = strconv.FormatFloat(time.Since(r.begun).Seconds(), 'f', 3, 64)
	}
}

func (r *report) print() {
	r.time("total ")
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = json.NewEncoder(os.Stdout).Encode(r.fields) // whoever reads it is gone
}

// fail notes an error by its class.
func (r *report) fail(err error) {
	if err != nil {
		r.set("error", class(err))
		r.set("_error", err)
	}
}

// class names the kind of an error as the clients in other languages do.
func class(err error) string {
	var timeout interface{ Timeout() bool }
	switch {
	case err == nil:
		return ""
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "eof"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	}
	return classOfText(err.Error())
}

func merge(into, from map[string]string) { maps.Copy(into, from) }
