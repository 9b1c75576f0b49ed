package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// playRole is another process of this program: what is measured runs in a
// process of its own, so that its CPU time is its own.
func playRole(role string, args []string) error {
	switch role {
	case "worker":
		return workerMain()
	case "loader":
		return loaderMain()
	case "sessions":
		return holdSessions(args)
	case "relay":
		return serveRelay(args)
	case "plain-origin", "check-floor", "hop":
		return serveOn(role, args)
	}
	if len(args) != 3 {
		return fmt.Errorf("role %s takes CERT KEY ADDRESS", role)
	}
	pair, err := tls.LoadX509KeyPair(args[0], args[1])
	if err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	var handler http.Handler
	switch role {
	case "origin":
		handler = originHandler()
	case "floor":
		if handler, err = floorHandler(args[0], args[2]); err != nil {
			return err
		}
	case "sink":
		return sink(l)
	default:
		return fmt.Errorf("unknown role %q", role)
	}
	server := &http.Server{
		Handler: handler, TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}},
		ReadHeaderTimeout: 10 * time.Second,
	}
	return server.ServeTLS(l, "", "")
}

// serveOn is a role without TLS: NETWORK:ADDRESS, and of the floor of checks
// before it the file of the site, of a hop the address behind it.
func serveOn(role string, args []string) error {
	network, address, _ := strings.Cut(args[len(args)-1], ":")
	l, err := (&net.ListenConfig{}).Listen(context.Background(), network, address)
	if err != nil {
		return err
	}
	fmt.Printf("%s:%s\n", network, l.Addr())
	switch role {
	case "plain-origin":
		return plainOrigin(l)
	case "hop":
		return plainHop(l, args[0])
	}
	return checkFloor(l, args[0])
}

// serveRelay is the relay of databases: ADDRESS, and the file of authorities for TLS
// to it or nothing.
func serveRelay(args []string) error {
	if len(args) != 2 {
		return errors.New("role relay takes ADDRESS CAFILE")
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return relay(l, args[0], args[1])
}

// originHandler answers every request with 1 KiB of JSON; those whose path ends
// in json-N with so many KiB, and in image-N with what begins as one.
func originHandler() http.Handler {
	body := []byte(`{"forecast":"` + strings.Repeat("rain ", 200) + `"}`)
	var long strings.Builder
	for i := 0; long.Len() < 1<<20; i++ {
		fmt.Fprintf(&long, `{"id":%d,"place":"Oslo-%x","at":"2026-11-22T%02d:%02d:00Z","temperature":%.2f,"url":"https://weather.example/v1/%x?units=metric"},`+"\n",
			i, i*2654435761, i%24, i%60, float64(i%400)/10, i*40503)
	}
	all := []byte(long.String())
	const begin = "\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
	image := append([]byte(begin), all[len(begin):]...)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		answer := body
		kind, size, _ := strings.Cut(r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:], "-")
		if n, err := strconv.Atoi(size); err == nil && n <= 1024 {
			answer = all[:n<<10]
		}
		if kind == "image" {
			w.Header().Set("Content-Type", "image/png")
			answer = image[:len(answer)]
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(answer)))
		_, _ = w.Write(answer)
	})
}

// floorHandler is the least that a proxy with TLS on both sides can cost:
// net/http's reverse proxy with its pool set.
func floorHandler(caFile, target string) (http.Handler, error) {
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	to := &url.URL{Scheme: "https", Host: target}
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Header.Set("Authorization", "Bearer a-token-of-the-floor")
		},
		Transport: &http.Transport{
			TLSClientConfig:     &tls.Config{RootCAs: pool, ServerName: apiHost, MinVersion: tls.VersionTLS12},
			MaxIdleConnsPerHost: 128, DisableCompression: true,
		},
	}, nil
}

// sink keeps connections open and reads what comes.
func sink(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			_, _ = io.Copy(io.Discard, conn)
			_ = conn.Close()
		}()
	}
}

// process is a program under measurement.
type process struct {
	cmd     *exec.Cmd
	address string // the first line it printed
}

// startRole starts a role in a process of its own.
func startRole(role, cert, key, target string) (*process, error) {
	return startProgram(anyCPU, "/proc/self/exe", "role="+role, cert, key, target)
}

// anyCPU leaves it to the kernel where a process runs.
const anyCPU = -1

// startProgram starts a program that prints where it listens, on one CPU or any.
func startProgram(cpu int, program string, args ...string) (*process, error) {
	cmd := exec.Command(program, args...) //nolint:noctx // this program or a rival; ended by Close
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := startOn(cpu, cmd); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", strings.Join(args, " "), err), cmd.Process.Kill(), cmd.Wait())
	}
	return &process{cmd, strings.TrimSpace(line)}, nil
}

// Close ends the process, which is ours.
func (p *process) Close() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	done := make(chan struct{})
	go func() { _ = p.cmd.Wait(); close(done) }() // its status is that of a signal
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		_ = p.cmd.Process.Kill()
		<-done
	}
}

// cpu returns the CPU time of every thread of the process so far.
func (p *process) cpu() time.Duration { return cpuOf(p.cmd.Process.Pid) }

func cpuOf(pid int) time.Duration {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return 0
	}
	var total time.Duration
	for _, task := range tasks {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", pid, task.Name()))
		var ns int64
		if err == nil {
			if _, err = fmt.Sscan(string(data), &ns); err == nil {
				total += time.Duration(ns)
			}
		}
	}
	return total
}

// rss returns the resident memory of the process in KiB.
func (p *process) rss() int { return rssOf(p.cmd.Process.Pid) }

func rssOf(pid int) int { return memoryOf(pid, "VmRSS:") }

// memoryOf returns a value of the status of a process, in KiB; 0 if the status lacks it.
func memoryOf(pid int, name string) int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if text, ok := strings.CutPrefix(line, name); ok {
			var kib int
			_, _ = fmt.Sscan(text, &kib)
			return kib
		}
	}
	return 0
}
