package ebpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// prober collects findings.
type prober struct {
	id       string
	group    *cgroup
	pins     string
	findings []Finding
}

// Probe finds out what this machine can do by doing it: it makes a cgroup to
// throw away, loads and attaches each program, and lets a confined process try
// what the walls are to stop. What a kernel says it has is not asked. The calling
// program has to call [Launch] first thing in main.
//
// A finding that is Required and has an Err means that nothing can be confined.
func Probe() []Finding {
	dir, err := os.MkdirTemp("", "chaperone-probe-")
	if err != nil {
		return []Finding{{Name: "temporary directory", Err: err, Required: true, Lost: "the probe itself", Remedy: "make the temporary directory writable"}}
	}
	defer func() { _ = os.RemoveAll(dir) }()
	p := &prober{}
	if p.id, err = cageID(filepath.Join(dir, "programs")); err != nil {
		return []Finding{{Name: "temporary directory", Err: err, Required: true, Lost: "the probe itself", Remedy: "make the temporary directory writable"}}
	}
	p.places()
	if p.group != nil && p.pins != "" {
		p.programs()
	}
	if p.group != nil {
		p.clean()
	}
	p.namespace()
	p.scope()
	p.selfTest(filepath.Join(dir, "self-test"))
	return p.findings
}

func (p *prober) found(f Finding, err error) {
	f.Err = err
	p.findings = append(p.findings, f)
}

// places checks what the programs hang on.
func (p *prober) places() {
	h, err := findHierarchy()
	if err == nil {
		p.group, err = makeGroup(h, cgroupPrefix+p.id)
	}
	if err == nil {
		_, err = os.Stat(filepath.Join(p.group.path, "cgroup.kill"))
	}
	p.found(Finding{
		Name: "cgroup v2", Required: true, Lost: "confinement and metering",
		Remedy: "mount cgroup v2 writable; in a systemd unit set Delegate=yes; in a container use the host's cgroup namespace",
	}, err)
	p.pins, err = pinDir(p.id)
	p.found(Finding{
		Name: "BPF file system", Required: true, Lost: "walls that outlast a killed sidecar",
		Remedy: "mount -t bpf bpf /sys/fs/bpf, or grant CAP_SYS_ADMIN so that Chaperone mounts its own",
	}, err)
}

// programs loads and attaches all of them, and if that fails each by itself, to
// name the ones that are missing.
func (p *prober) programs() {
	w, err := loadWalls(p.pins, p.group, true, true)
	if err == nil {
		err = errors.Join(w.attach(p.pins, p.group), w.close())
		hooks := error(nil)
		if w.unix == nil {
			hooks = errors.New("the kernel has no connect_unix hook")
		}
		p.found(unixFinding(), hooks)
	}
	all := Finding{
		Name: "kernel programs", Required: true, Lost: "confinement and metering",
		Remedy: "use Linux 5.15 or later with CONFIG_CGROUP_BPF and BTF, and grant CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON",
	}
	p.found(all, err)
	if err == nil {
		return
	}
	for _, load := range []func() (*ebpf.CollectionSpec, error){loadWall, loadUnix, loadCalls} {
		spec, err := load()
		if err != nil {
			p.found(all, err)
			return
		}
		for _, name := range sorted(spec.Programs) {
			p.one(spec.Copy(), name)
		}
	}
}

// one loads and attaches a single program.
func (p *prober) one(spec *ebpf.CollectionSpec, name string) {
	for other := range spec.Programs {
		if other != name {
			delete(spec.Programs, other)
		}
	}
	f := Finding{Name: "program " + name, Required: true, Lost: "the wall at " + name, Remedy: "use a newer kernel"}
	switch {
	case strings.HasSuffix(name, "_unix"):
		f = unixFinding()
		f.Name = "program " + name
	case name == "count_call":
		f.Required, f.Lost = false, "limits on system calls"
	}
	collection, err := ebpf.NewCollection(spec)
	if err == nil {
		defer collection.Close()
		var l link.Link
		if name == "count_call" {
			l, err = link.AttachTracing(link.TracingOptions{Program: collection.Programs[name]})
		} else {
			l, err = link.AttachCgroup(link.CgroupOptions{Path: p.group.path, Attach: attachType(name), Program: collection.Programs[name]})
		}
		if err == nil {
			err = l.Close()
		}
	}
	p.found(f, err)
}

func unixFinding() Finding {
	return Finding{
		Name: "Unix socket hooks", Lost: "abstract Unix sockets inside the plugin: it gets socket pairs only, by seccomp",
		Remedy: "use Linux 6.7 or later",
	}
}

func (p *prober) clean() {
	var errs []error
	if p.pins != "" {
		errs = append(errs, unpin(p.pins))
	}
	errs = append(errs, p.group.remove(), p.group.close())
	if err := errors.Join(errs...); err != nil {
		p.found(Finding{Name: "clean-up", Lost: "nothing", Remedy: "remove " + p.group.path}, err)
	}
}

func (p *prober) namespace() {
	n, err := newNetwork()
	if err == nil {
		err = n.close()
	}
	p.found(Finding{
		Name: "network namespace", Required: true, Lost: "a network of the plugin's own, without which the programs are its only wall",
		Remedy: "grant CAP_SYS_ADMIN and CAP_NET_ADMIN, or set process.network to host",
	}, err)
}

func (p *prober) scope() {
	var err error
	if !scoped() {
		err = errors.New("the kernel has no Landlock, or its first version")
	}
	p.found(Finding{
		Name: "process scope", Lost: "protection of other processes of the plugin's user from it; a dynamic user has none",
		Remedy: "use Linux 5.19 or later with landlock among the active security modules (boot parameter lsm=)",
	}, err)
}

// selfTest runs a confined process against the walls.
func (p *prober) selfTest(dir string) {
	p.found(Finding{
		Name: "self-test", Required: true, Lost: "confinement: the walls do not hold on this kernel",
		Remedy: "report this, with the kernel's version",
	}, runSelfTest(dir))
}

func runSelfTest(dir string) error {
	cage, err := New(Config{Plugin: "self-test", StateDir: dir})
	if err != nil {
		return err
	}
	return errors.Join(tryCage(cage), cage.Close())
}

func tryCage(cage *Cage) error {
	listener, err := cage.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer func() { _ = listener.Close() }()
	address, ok := tcpAddress(listener.Addr())
	if !ok {
		return fmt.Errorf("self-test: %v is no TCP address", listener.Addr())
	}
	if err := cage.Attach(Endpoints{Proxy4: address}); err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- serveSelfTest(cage, listener) }()
	process, err := cage.start(Command{Path: "self-test"}, &selfTest{Timeout: 10})
	if err != nil {
		return errors.Join(err, listener.Close(), <-served)
	}
	status, err := process.Wait()
	if err = errors.Join(err, listener.Close(), <-served); err != nil {
		return err
	}
	if status != 0 {
		return fmt.Errorf("self-test: the confined process ended with %d", status)
	}
	u, err := cage.Usage()
	if err != nil {
		return err
	}
	if u.Connections != 1 || u.SentBytes == 0 || u.ReceivedBytes == 0 || u.Refused == 0 {
		return fmt.Errorf("self-test: counted %d connections, %d bytes sent, %d received, %d refusals", u.Connections, u.SentBytes, u.ReceivedBytes, u.Refused)
	}
	return nil
}

// serveSelfTest takes the one connection that the confined process opens.
func serveSelfTest(cage *Cage, listener net.Listener) error {
	conn, err := listener.Accept()
	if errors.Is(err, net.ErrClosed) {
		return errors.New("self-test: no connection arrived")
	}
	if err != nil {
		return fmt.Errorf("self-test: %w", err)
	}
	defer func() { _ = conn.Close() }()
	peer, ok := cage.Identify(conn)
	if !ok || peer.Original != selfTestTCP() {
		return fmt.Errorf("self-test: the connection was not recorded (got %v)", peer.Original)
	}
	if _, err := conn.Write([]byte{1}); err != nil {
		return fmt.Errorf("self-test: %w", err)
	}
	return nil
}

// selfTest is what the launcher does instead of starting a program.
type selfTest struct {
	// Timeout is how long it may take, in seconds: nothing waits for ever.
	Timeout uint
}

// run tries what has to fail and what has to work. The addresses are never
// reached: they are in the range reserved by RFC 1112, section 4, and the
// process has no route.
func (s *selfTest) run() error {
	timer := time.AfterFunc(time.Duration(s.Timeout)*time.Second, func() { os.Exit(124) }) //nolint:forbidigo // the end of this process
	defer timer.Stop()
	for _, try := range []struct {
		name string
		do   func() error
	}{
		{"send a datagram", func() error { return sendDatagram(false) }},
		{"send a datagram on a connected socket", func() error { return sendDatagram(true) }},
		{"make a raw socket", func() error { return makeSocket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW) }},
		{"make a packet socket", func() error { return makeSocket(unix.AF_PACKET, unix.SOCK_DGRAM, 0) }},
		{"make a namespace", func() error { return unix.Unshare(unix.CLONE_NEWUSER) }},
		{"connect to a Unix socket", connectUnix},
	} {
		if err := try.do(); !errors.Is(err, unix.EPERM) {
			return errors.Join(fmt.Errorf("self-test: %s was not refused with EPERM", try.name), err)
		}
	}
	return connectSelf()
}

// selfTestTCP is where the self-test connects to.
func selfTestTCP() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{240, 0, 0, 1}), 80)
}

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
		return fmt.Errorf("probe an address: %w", err)
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

func connectUnix() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.Connect(fd, &unix.SockaddrUnix{Name: "/nowhere"})
}

// connectSelf opens the one connection that arrives.
func connectSelf() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("self-test: make socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	to := selfTestTCP()
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); err != nil {
		return fmt.Errorf("self-test: connect: %w", err)
	}
	var answer [1]byte
	if n, err := unix.Read(fd, answer[:]); err != nil || n != 1 {
		return errors.Join(fmt.Errorf("self-test: read %d bytes", n), err)
	}
	return nil
}
