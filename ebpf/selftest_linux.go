package ebpf

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
	"github.com/chaperone-proxy/chaperone/ebpf/sandbox/launcher"
)

// selfTestTimeout bounds what is to happen at once.
const selfTestTimeout = 5 * time.Second

// selfTestSeconds bounds all attempts of one process together.
const selfTestSeconds = 10

// probeProcess is a confined process that makes attempts, and what it talks to.
type probeProcess struct {
	confinement *Confinement
	listener    net.Listener
	foreignPeer net.Conn // the far end of a socket that it holds and did not make
	process     *sandbox.Process
	asks        *os.File
	answers     *os.File
	lines       *bufio.Scanner
	served      chan error
	peer        atomic.Pointer[Peer] // the last process that connected
}

// newProbeProcess makes a confinement with all hooks up, and starts nothing in it.
func newProbeProcess(dir string) (*probeProcess, error) {
	confinement, err := New(Config{Plugin: "self-test", StateDir: dir, CountSyscalls: true})
	if err != nil {
		return nil, err
	}
	s := &probeProcess{confinement: confinement, served: make(chan error, 1)}
	if err := s.prepare(); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *probeProcess) prepare() error {
	var err error
	if s.listener, err = s.confinement.Listen("tcp", "127.0.0.1:0"); err != nil {
		return err
	}
	go func() { s.served <- s.serve() }()
	address, ok := tcpAddress(s.listener.Addr())
	if !ok {
		return fmt.Errorf("self-test: %v is no TCP address", s.listener.Addr())
	}
	return s.confinement.Attach(Endpoints{Proxy4: address})
}

// serve answers every connection that is known to be the confined process's.
func (s *probeProcess) serve() error {
	for {
		conn, err := s.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("self-test: %w", err)
		}
		if peer, ok := s.confinement.Identify(conn); ok && peer.Original == selfTestDestination() {
			s.peer.Store(&peer)
			_, _ = conn.Write([]byte{1}) // a limit may have it dropped
		}
		if err := conn.Close(); err != nil {
			return fmt.Errorf("self-test: %w", err)
		}
	}
}

// start starts the process, with a socket that was made outside in place of its
// standard error.
func (s *probeProcess) start(files *sandbox.Files) error {
	foreign, err := s.connectForeign()
	if err != nil {
		return err
	}
	return s.startWith(files, foreign)
}

// startWith starts the process with a socket in place of its standard error.
func (s *probeProcess) startWith(files *sandbox.Files, foreign *os.File) error {
	defer func() { _ = foreign.Close() }()
	stdin, asks, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("self-test: %w", err)
	}
	defer func() { _ = stdin.Close() }()
	answers, stdout, err := os.Pipe()
	if err != nil {
		return errors.Join(fmt.Errorf("self-test: %w", err), asks.Close())
	}
	defer func() { _ = stdout.Close() }()
	s.asks, s.answers, s.lines = asks, answers, bufio.NewScanner(answers)
	s.process, err = s.confinement.start(sandbox.Command{Path: "self-test", Files: files, Stdin: stdin, Stdout: stdout, Stderr: foreign}, selfTestSeconds)
	return err
}

// connectForeign makes a connection inside the plugin's network that the plugin did
// not make.
func (s *probeProcess) connectForeign() (*os.File, error) {
	listener, err := s.confinement.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer func() { _ = listener.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), selfTestTimeout) //nolint:forbidigo // bounded here
	defer cancel()
	conn, err := s.confinement.DialContext(ctx, "tcp", listener.Addr().String())
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	socket, ok := conn.(*net.TCPConn)
	if !ok {
		return nil, fmt.Errorf("self-test: %T is not a TCP connection", conn)
	}
	foreign, err := socket.File()
	if err != nil {
		return nil, fmt.Errorf("self-test: %w", err)
	}
	s.foreignPeer, err = listener.Accept()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("self-test: %w", err), foreign.Close())
	}
	return foreign, nil
}

// ask has one attempt made.
func (s *probeProcess) ask(attempt string) string {
	if _, err := fmt.Fprintln(s.asks, attempt); err != nil {
		return err.Error()
	}
	if !s.lines.Scan() {
		return "no answer"
	}
	return s.lines.Text()
}

// want has one attempt made, which is to end in one way.
func (s *probeProcess) want(attempt, outcome string) error {
	if got := s.ask(attempt); got != outcome {
		return fmt.Errorf("self-test: %s ended with %s instead of %s", attempt, got, outcome)
	}
	return nil
}

// hooks tries what has to fail and what has to work.
func (s *probeProcess) hooks() error {
	for _, attempt := range []string{"datagram", "connected-datagram", "raw-socket", "packet-socket", "namespace", "unix /nowhere"} {
		if err := s.want(attempt, "EPERM"); err != nil {
			return err
		}
	}
	if err := s.want("connect", "ok"); err != nil {
		return err
	}
	u, err := s.confinement.Usage()
	if err != nil {
		return err
	}
	if u.Connections != 1 || u.SentBytes == 0 || u.ReceivedBytes == 0 || u.Refused < 6 {
		return fmt.Errorf("self-test: counted %d connections, %d bytes sent, %d received, %d refusals",
			u.Connections, u.SentBytes, u.ReceivedBytes, u.Refused)
	}
	return nil
}

// id compares the id under which the kernel reported a connection with that of
// the process that made it.
func (s *probeProcess) id() error {
	peer := s.peer.Load()
	switch {
	case peer == nil:
		return errors.New("self-test: nothing has connected")
	case int(peer.PID) != s.process.PID():
		return fmt.Errorf("self-test: process %d is reported as %d", s.process.PID(), peer.PID)
	}
	return nil
}

// exe looks for the program of the process that connected, which is the
// sidecar's own.
func (s *probeProcess) exe() error {
	want, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("self-test: %w", err)
	}
	if peer := s.peer.Load(); peer == nil || peer.Exe != want {
		_, err := os.Readlink("/proc/" + strconv.Itoa(s.process.PID()) + "/exe")
		return errors.Join(fmt.Errorf("self-test: the program of process %d is not %s", s.process.PID(), want), err)
	}
	return nil
}

// calls has system calls counted, and a process.
func (s *probeProcess) calls() error {
	const n = 1000
	before, err := s.confinement.Usage()
	if err != nil {
		return err
	}
	if err := errors.Join(s.want(fmt.Sprintf("calls %d", n), "ok"), s.want("child", "ok")); err != nil {
		return err
	}
	after, err := s.confinement.Usage()
	if err != nil {
		return err
	}
	calls, processes := after.Syscalls.Process-before.Syscalls.Process, after.Processes-before.Processes
	if calls < n || processes != 1 {
		return fmt.Errorf("self-test: counted %d of %d system calls and %d of 1 processes", calls, n, processes)
	}
	return nil
}

// limit has a limit of a kind refuse, and allowed again without it.
func (s *probeProcess) limit(kind LimitKind) error {
	attempt, refused := "connect", "EPERM"
	if kind == LimitProcesses {
		attempt, refused = "child", "killed"
	}
	if err := s.confinement.Limit([]Limit{{Name: "self-test", Kind: kind, Count: 1, Used: 1}}); err != nil {
		return err
	}
	err := s.want(attempt, refused)
	if err := s.confinement.Limit(nil); err != nil {
		return err
	}
	return errors.Join(err, s.want(attempt, "ok"))
}

// sockets has one Unix socket allowed, which does not exist, and no other.
func (s *probeProcess) sockets() error {
	const path = "/chaperone-self-test"
	if err := s.confinement.AllowSockets([]string{path}); err != nil {
		return err
	}
	return errors.Join(s.want("unix "+path, "ENOENT"), s.want("unix "+path+"-other", "EPERM"))
}

// foreignSockets has the socket found that the process did not make.
func (s *probeProcess) foreignSockets() error {
	if err := s.confinement.scanSockets(); err != nil {
		return err
	}
	if err := s.foreignPeer.SetReadDeadline(time.Now().Add(selfTestTimeout)); err != nil {
		return fmt.Errorf("self-test: %w", err)
	}
	if _, err := s.foreignPeer.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("self-test: a socket that was made outside the cgroup works inside it")
	}
	return nil
}

// socketHolder starts the process with a socket that was made outside and is not
// connected, and waits for its end.
func (s *probeProcess) socketHolder() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("self-test: %w", err)
	}
	if err := s.startWith(nil, os.NewFile(uintptr(fd), "foreign")); err != nil {
		return err
	}
	err = s.confinement.scanSockets()
	if err == nil {
		s.lines.Scan() // until its end
	}
	status, waited := s.finish()
	if err := errors.Join(err, waited); err != nil {
		return err
	}
	if status != 128+int(unix.SIGKILL) {
		return fmt.Errorf("self-test: a process that holds a socket made outside the cgroup ended with %d", status)
	}
	return nil
}

// escape moves the process out of its cgroup, and waits for its end.
func (s *probeProcess) escape() error {
	ctx, cancel := context.WithCancel(context.Background()) //nolint:forbidigo // ends below
	run := make(chan error, 1)
	go func() { run <- s.confinement.Run(ctx) }()
	err := os.WriteFile(filepath.Join(filepath.Dir(s.confinement.group.Path), "cgroup.procs"), []byte(strconv.Itoa(s.process.PID())), 0)
	if err == nil {
		s.lines.Scan() // until its end
	}
	status, waited := s.finish()
	cancel()
	if err := errors.Join(err, waited, <-run); err != nil {
		return fmt.Errorf("self-test: leave the cgroup: %w", err)
	}
	if status != 128+int(unix.SIGKILL) {
		return fmt.Errorf("self-test: a process that left its cgroup ended with %d", status)
	}
	return nil
}

// files starts the process again with no file granted.
func (s *probeProcess) files() error {
	if err := s.start(&sandbox.Files{}); err != nil {
		return err
	}
	err := errors.Join(s.want("list /", "EACCES"), s.want("list /usr", "ok"))
	_, ended := s.finish()
	return errors.Join(err, ended)
}

// finish ends the process, unless it has ended, and returns how.
func (s *probeProcess) finish() (int, error) {
	if s.process == nil {
		return 0, nil
	}
	_ = s.asks.Close() // it ends at the end of its standard input
	status, err := s.process.Wait()
	s.process = nil
	err = errors.Join(err, s.answers.Close())
	if s.foreignPeer != nil {
		err = errors.Join(err, s.foreignPeer.Close())
		s.foreignPeer = nil
	}
	return status, err
}

func (s *probeProcess) close() error {
	_, err := s.finish()
	if s.listener != nil {
		err = errors.Join(err, s.listener.Close(), <-s.served)
	}
	return errors.Join(err, s.confinement.Close())
}

// selfTestDestination is where the self-test connects to.
func selfTestDestination() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4(launcher.SelfTestAddress()), launcher.SelfTestPort)
}
