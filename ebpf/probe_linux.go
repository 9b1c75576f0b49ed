package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
	"github.com/chaperone-proxy/chaperone/ebpf/sandbox/launcher"
)

// prober collects findings.
type prober struct {
	at       sandbox.Paths
	group    *sandbox.Cgroup
	pins     string
	findings []Finding
}

// Probe finds out what this machine can do by doing it: it makes a cgroup to throw
// away, loads and attaches each program, and lets a confined process try what the hooks
// are to stop. Version numbers and configuration are not consulted. The calling program
// has to call [Launch] first thing in main.
//
// A finding that is Required and has an Err means that nothing can be confined.
func Probe() []Finding {
	dir, err := os.MkdirTemp("", "chaperone-probe-")
	if err != nil {
		return []Finding{{Name: "temporary directory", Err: err, Required: true, Lost: "the probe itself", Remedy: "make the temporary directory writable"}}
	}
	defer func() { _ = os.RemoveAll(dir) }()
	p := &prober{}
	if p.at, err = sandbox.FindPaths(filepath.Join(dir, "programs")); err != nil {
		return []Finding{{Name: "runtime directory", Err: err, Required: true, Lost: "the probe itself", Remedy: "run as root, or make /run or the temporary directory writable"}}
	}
	_, err = pidNamespace()
	p.add(Finding{
		Name: "process ids", Required: true, Lost: "confinement: what is reported and ended by its id would be another process",
		Remedy: "mount -t proc proc /proc in the sidecar's PID namespace",
	}, err)
	p.prerequisites()
	if p.group != nil && p.pins != "" {
		p.programs()
	}
	if p.group != nil {
		p.clean()
	}
	p.callWatch()
	p.namespace()
	p.scope()
	p.rootless(dir)
	p.selfTest(filepath.Join(dir, "self-test"))
	return p.findings
}

func (p *prober) add(f Finding, err error) {
	f.Err = err
	p.findings = append(p.findings, f)
}

// prerequisites checks what the programs hang on.
func (p *prober) prerequisites() {
	h, err := p.at.FindCgroupMount()
	if err == nil {
		p.group, err = sandbox.MakeCgroup(h, cgroupPrefix+p.at.ID)
	}
	if err == nil {
		_, err = os.Stat(filepath.Join(p.group.Path, "cgroup.kill"))
	}
	p.add(Finding{
		Name: "cgroup v2", Required: true, Lost: "confinement and metering",
		Remedy: "mount cgroup v2 writable; in a systemd unit set Delegate=yes; in a container use the host's cgroup namespace",
	}, err)
	p.pins, err = pinDir(p.at)
	p.add(Finding{
		Name: "BPF file system", Required: true, Lost: "programs that outlast a killed sidecar",
		Remedy: "mount -t bpf bpf /sys/fs/bpf, or grant CAP_SYS_ADMIN so that Chaperone mounts its own",
	}, err)
}

// programs loads and attaches all of them, and if that fails each by itself, to
// name the ones that are missing.
func (p *prober) programs() {
	w, err := loadCollection(p.pins, p.group, true, false, true)
	if err == nil {
		err = errors.Join(w.attach(p.pins, p.group), w.close())
		hooks := error(nil)
		if w.unix == nil {
			hooks = errors.New("the kernel has no connect_unix hook")
		}
		p.add(unixFinding(), hooks)
		p.findings = append(p.findings, proctrackFindings()...)
	}
	all := Finding{
		Name: "kernel programs", Required: true, Lost: "confinement and metering",
		Remedy: "use Linux 5.15 or later with CONFIG_CGROUP_BPF and BTF, and grant CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON",
	}
	p.add(all, err)
	if err == nil {
		return
	}
	for _, load := range []func() (*ebpf.CollectionSpec, error){loadHooks, loadUnix, loadCalls, loadProctrack, loadSocketscan} {
		spec, err := load()
		if err != nil {
			p.add(all, err)
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
	f := Finding{Name: "program " + name, Required: true, Lost: "the hook " + name, Remedy: "use a newer kernel"}
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
		program := collection.Programs[name]
		switch {
		case spec.Programs[name].AttachType == ebpf.AttachTraceIter:
			l, err = link.AttachIter(link.IterOptions{Program: program})
		case program.Type() == ebpf.Tracing:
			l, err = link.AttachTracing(link.TracingOptions{Program: program})
		default:
			l, err = link.AttachCgroup(link.CgroupOptions{Path: p.group.Path, Attach: attachType(name), Program: program})
		}
		if err == nil {
			err = l.Close()
		}
	}
	p.add(f, err)
}

// callWatch measures what counting system calls costs, and tries what stands in for it.
func (p *prober) callWatch() {
	call, added, err := measureTrace()
	p.add(Finding{
		Name: "cost of counted system calls", Lost: "limits on system calls", Remedy: "use a newer kernel",
		Measured: fmt.Sprintf("%v more for each call of every process, on %v, while a limit has them counted", added, call),
	}, err)
	p.add(Finding{
		Name: "system calls bounded by CPU time", Lost: "limits.countSyscalls: whenNear; a limit on system calls always costs every process of the host",
		Remedy: "use Linux 6.13 or later",
	}, tryCallWatch())
}

// tryCallWatch loads the programs of [callWatch], and attaches the one on the scheduler's switch.
func tryCallWatch() error {
	spec, err := loadCallwatch()
	if err != nil {
		return fmt.Errorf("read call watch programs: %w", err)
	}
	cpus, err := sizeCallWatch(spec)
	if err != nil {
		return err
	}
	programs, err := ebpf.NewCollection(spec)
	if err != nil {
		return fmt.Errorf("load call watch programs: %w", err)
	}
	defer programs.Close()
	if err := prepareCallWatch(programs, cpus); err != nil {
		return err
	}
	l, err := link.AttachTracing(link.TracingOptions{Program: programs.Programs["watch_switch"]})
	if err != nil {
		return fmt.Errorf("attach watch of system calls: %w", err)
	}
	return l.Close()
}

func unixFinding() Finding {
	return Finding{
		Name: "Unix socket hooks", Lost: "abstract Unix sockets inside the plugin, and those of a grant: it gets socket pairs only, by seccomp",
		Remedy: "use Linux 6.7 or later",
	}
}

func (p *prober) clean() {
	var errs []error
	if p.pins != "" {
		errs = append(errs, unpin(p.pins))
	}
	errs = append(errs, p.group.Remove(), p.group.Close())
	if err := errors.Join(errs...); err != nil {
		p.add(Finding{Name: "clean-up", Lost: "nothing", Remedy: "remove " + p.group.Path}, err)
	}
}

func (p *prober) namespace() {
	n, err := sandbox.NewNetwork(nil)
	if err == nil {
		err = n.Close()
	}
	p.add(Finding{
		Name: "network namespace", Required: true, Lost: "a network of the plugin's own, without which the programs are its only confinement",
		Remedy: "grant CAP_SYS_ADMIN and CAP_NET_ADMIN, or set process.network to host",
	}, err)
}

func (p *prober) scope() {
	var err error
	if !launcher.SupportsScope() {
		err = errors.New("the kernel has no Landlock, or its first version")
	}
	p.add(Finding{
		Name: "process scope", Lost: "protection of other processes of the plugin's user from it; a dynamic user has none",
		Remedy: "use Linux 5.19 or later with landlock among the active security modules (boot parameter lsm=)",
	}, err)
}

// rootless finds out whether an ordinary user's plugin could have a [Rootless].
func (p *prober) rootless(dir string) {
	f, err := sandbox.NewRootless(sandbox.RootlessConfig{Plugin: "self-test", StateDir: dir})
	if err == nil {
		err = f.Close()
	}
	p.add(Finding{
		Name: "rootless sandbox", Lost: "a network of the plugin's own where the kernel is off: it gets proxy variables, and nothing keeps it to them",
		Remedy: "permit user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)",
	}, err)
}

// selfTest has a confined process try the hooks.
func (p *prober) selfTest(dir string) {
	const report = "report this, with the kernel's version"
	walls := Finding{Name: "self-test", Required: true, Lost: "confinement: the programs do not confine on this kernel", Remedy: report}
	s, err := newProbeProcess(dir)
	if err != nil {
		p.add(walls, err)
		return
	}
	defer func() {
		if err := s.close(); err != nil {
			p.add(Finding{Name: "clean-up", Lost: "nothing", Remedy: "run: chaperone detach"}, err)
		}
	}()
	if err := s.start(nil); err != nil {
		p.add(walls, err)
		return
	}
	p.add(walls, s.hooks())
	p.add(Finding{
		Name: "processes identified", Required: true, Lost: "the id of the process in each record, and an end to processes by their id", Remedy: report,
	}, s.id())
	p.add(Finding{
		Name: "programs identified", Lost: "the program (exe) of the process in each record",
		Remedy: "grant CAP_SYS_PTRACE, and mount /proc without hidepid",
	}, s.exe())
	p.add(Finding{Name: "system calls and processes counted", Lost: "metering of both, and limits on them", Remedy: report}, s.calls())
	p.add(Finding{
		Name: "foreign sockets ended", Required: true, Lost: "an end to connections that the plugin was handed from outside", Remedy: report,
	}, s.foreignSockets())
	if s.confinement.Info().UnixHooks {
		p.add(Finding{Name: "Unix sockets allowed by name", Lost: "sockets of a grant: all are refused", Remedy: report}, s.sockets())
	}
	for kind := LimitConnections; kind <= LimitProcesses; kind++ {
		name := "limit on " + kind.String()
		p.add(Finding{Name: name, Required: true, Lost: "a " + name + ", which the kernel does not enforce", Remedy: report}, s.limit(kind))
	}
	p.add(Finding{Name: "escapes ended", Required: true, Lost: "an end to processes that leave the plugin's cgroup", Remedy: report}, s.escape())
	p.add(Finding{
		Name: "holders of foreign sockets ended", Required: true, Lost: "an end to processes that were handed a socket from outside", Remedy: report,
	}, s.socketHolder())
	if err := launcher.FilesSupported(); err == nil {
		p.add(filesFinding(report), s.files())
	} else {
		p.add(filesFinding("use Linux 6.2 or later with landlock among the active security modules (boot parameter lsm=)"), err)
	}
}

func filesFinding(remedy string) Finding {
	return Finding{Name: "file rules", Lost: "process.files: a plugin that states them does not start", Remedy: remedy}
}
