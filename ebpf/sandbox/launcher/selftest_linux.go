package launcher

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// runSelfTest is what the launcher does instead of starting a program: it makes
// the attempts that its standard input names, one a line, and answers each with
// how it ended. After so many seconds it ends by itself.
func runSelfTest(seconds uint) error {
	timer := time.AfterFunc(time.Duration(seconds)*time.Second, func() { os.Exit(124) }) //nolint:forbidigo // the end of this process
	defer timer.Stop()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		name, argument, _ := strings.Cut(lines.Text(), " ")
		if _, err := fmt.Fprintln(os.Stdout, outcome(attempt(name, argument))); err != nil {
			return fmt.Errorf("self-test: answer: %w", err)
		}
	}
	return nil
}

// outcome names an error so that it can be compared.
func outcome(err error) string {
	if err == nil {
		return "ok"
	}
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		return unix.ErrnoName(errno)
	}
	return strings.ReplaceAll(err.Error(), "\n", " ")
}

// attempt makes one attempt. The addresses are never reached: they are in the range
// reserved by RFC 1112, section 4, and the process has no route.
func attempt(name, argument string) error {
	switch name {
	case "datagram":
		return sendDatagram(false)
	case "connected-datagram":
		return sendDatagram(true)
	case "raw-socket":
		return makeSocket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
	case "packet-socket":
		return makeSocket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
	case "namespace":
		return unix.Unshare(unix.CLONE_NEWUSER)
	case "unix":
		return connectUnix(argument)
	case "connect":
		return connectOut()
	case "calls":
		return makeCalls(argument)
	case "child":
		return makeChild()
	case "list":
		_, err := os.ReadDir(argument)
		return err
	}
	return fmt.Errorf("no attempt is called %q", name)
}

// SelfTestPort is the port that the self-test connects to.
const SelfTestPort = 80

// SelfTestAddress returns the address that goes with [SelfTestPort].
func SelfTestAddress() [4]byte { return [4]byte{240, 0, 0, 1} }

func sendDatagram(connected bool) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	to := &unix.SockaddrInet4{Addr: [4]byte{240, 0, 0, 1}, Port: 443}
	if !connected {
		return unix.Sendto(fd, []byte{1}, 0, to)
	}
	if err := unix.Connect(fd, to); err != nil {
		return fmt.Errorf("probe an address: %s", outcome(err))
	}
	_, err = unix.Write(fd, []byte{1})
	return err
}

func makeSocket(domain, kind, protocol int) error {
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol)
	if err == nil {
		_ = unix.Close(fd)
	}
	return err
}

func connectUnix(path string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.Connect(fd, &unix.SockaddrUnix{Name: path})
}

// connectOut opens a connection, and wants an answer on it.
func connectOut() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: SelfTestAddress(), Port: SelfTestPort}); err != nil {
		return err
	}
	var answer [1]byte
	if n, err := unix.Read(fd, answer[:]); err != nil || n != 1 {
		return errors.Join(fmt.Errorf("read %d bytes", n), err)
	}
	return nil
}

// makeCalls makes so many system calls.
func makeCalls(number string) error {
	n, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	for range n {
		unix.Getppid()
	}
	return nil
}

// childStatus distinguishes a child that ran from one that did not.
const childStatus = 7

// makeChild makes a process that does nothing but end. It calls the kernel
// directly, since no program is to be started.
func makeChild() error {
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 {
		return errno
	}
	for pid == 0 {
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, childStatus, 0, 0)
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(int(pid), &status, 0, nil); err != nil {
		return err
	}
	switch {
	case status.Signaled():
		return errors.New("killed")
	case status.ExitStatus() != childStatus:
		return fmt.Errorf("the child ended with %d", status.ExitStatus())
	}
	return nil
}
