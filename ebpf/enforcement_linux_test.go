package ebpf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
	"github.com/chaperone-proxy/chaperone/ebpf/sandbox/launcher"
)

// A throttled plugin runs in turns, which add up to its rate.
func TestThrottledCalls(t *testing.T) {
	s := newStoppable(t, nil)
	for try, began := 0, time.Now(); time.Since(began) < patience; try++ {
		l := Limit{
			Name: fmt.Sprint(try), Kind: LimitSyscalls, Action: ActionThrottle,
			Count: 50_000, Period: 500 * time.Millisecond,
		}
		s.limit(l)
		before := s.used().Syscalls.Total
		start := time.Now()
		got := s.flood("call", "240.0.0.9:80", "2s", "2")
		calls, most := float64(s.used().Syscalls.Total-before), l.permits(time.Since(start))+2*lease
		least := l.permits(got.all)
		t.Logf("%.0f calls, %+.2f%% of the rate", calls, 100*(calls/least-1))
		if calls > most {
			t.Errorf("%.0f calls, at most %.0f", calls, most)
		}
		if calls > 0.97*least {
			return
		}
	}
	t.Error("the turns are too short or too few")
}

// A limit on processes that stops refuses none: the next ones are started when
// the limit allows it.
func TestStopAtProcesses(t *testing.T) {
	s := newStoppable(t, nil)
	s.limit(Limit{Name: "slowly", Kind: LimitProcesses, Count: 10, Period: time.Second, Action: ActionStop})
	const twenty = `n=0; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do /bin/true && n=$((n+1)); done; echo $n`
	start := time.Now()
	if got := s.ok(s.command(sandbox.Command{Path: "/bin/sh", Args: []string{"sh", "-c", twenty}})); got != "20" {
		t.Errorf("%s of 20 processes ran", got)
	}
	if took := time.Since(start); took < 900*time.Millisecond { // 10 at once, and 10 a second
		t.Errorf("20 processes in %v", took)
	}
	if got := s.crossed(); len(got) < 2 || !slices.Equal(got[:2], []string{"slowly over", "slowly free"}) {
		t.Errorf("crossings are %v", got)
	}
}

// A crossing names the process that the kernel saw at the limit.
func TestWhoCrossed(t *testing.T) {
	for _, kind := range []LimitKind{LimitConnections, LimitSentBytes, LimitSyscalls, LimitProcesses} {
		t.Run(kind.String(), func(t *testing.T) {
			named := false
			// It may be found out before it is called for, and is nobody's then.
			for began := time.Now(); !named && time.Since(began) < patience; {
				named = crossedBy(t, kind)
			}
			if !named {
				t.Error("no crossing names its process")
			}
		})
	}
}

func crossedBy(t *testing.T, kind LimitKind) (named bool) {
	t.Helper()
	s := newStoppable(t, nil)
	go accepts(s.proxy4)
	what := map[LimitKind]string{
		LimitConnections: `exec 3<>/dev/tcp/240.0.0.9/80`, LimitSentBytes: `exec 3<>/dev/udp/10.8.8.8/53; printf %050d 0 >&3`,
		LimitSyscalls: `cd /`, LimitProcesses: `/bin/true`,
	}[kind]
	ask, end := s.dialogue("/bin/bash", "bash", "-c", `echo $$; while read; do for i in 1 2 3 4 5; do `+what+`; done 2>/dev/null; echo; done`)
	pid := ask("")
	s.limit(Limit{Name: "who", Kind: kind, Count: 3})
	ask("go")
	becomes(t, "crossing", func() bool { return len(s.crossed()) > 0 })
	end()
	s.mu.Lock()
	defer s.mu.Unlock()
	who := s.crossings[0]
	if who.PID != 0 && (fmt.Sprint(who.PID) != pid || who.Comm != "bash") {
		t.Errorf("crossed by %d %q, and it was %s", who.PID, who.Comm, pid)
	}
	return who.PID != 0
}

// Calls by the numbers of another architecture count, and count against a limit.
func TestForeignCallsCount(t *testing.T) {
	if launcher.NativeArch != unix.AUDIT_ARCH_X86_64 {
		t.Skip("there is only one on this machine")
	}
	group, path := given(t)
	c, err := New(Config{StateDir: t.TempDir(), CgroupPath: group.Path, NetworkPath: path})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(c.Close(), Detach(c.config.StateDir, true)); err != nil {
			t.Error(err)
		}
	}()
	if err := c.Attach(Endpoints{}); err != nil {
		t.Fatal(err)
	}
	program := assemble(t, []byte{
		0xbd, 0xe8, 3, 0, 0, // mov ebp, 1000
		0xb8, 20, 0, 0, 0, // mov eax, 20 (getpid of i386)
		0xcd, 0x80, // int 0x80
		0xff, 0xcd, // dec ebp
		0x75, 0xf5, // jnz to the second line
		0xbf, 7, 0, 0, 0, // mov edi, 7
		0xb8, 60, 0, 0, 0, // mov eax, 60 (exit)
		0x0f, 0x05, // syscall
	})
	for _, test := range []struct {
		count uint64
		want  string
	}{{100_000, "exit status 7"}, {500, "signal: killed"}} { // in this order: nobody runs here who lifts a pending action
		count, want := test.count, test.want
		if err := c.Limit([]Limit{{Name: want, Kind: LimitSyscalls, Count: count, Action: ActionKill}}); err != nil {
			t.Fatal(err)
		}
		before, err := c.Usage()
		if err != nil {
			t.Fatal(err)
		}
		if got := settle(t, group, path, program).wait(); got != want {
			t.Errorf("with a limit of %d it ended with %s", count, got)
		}
		after, err := c.Usage()
		if err != nil {
			t.Fatal(err)
		}
		calls, most := after.Syscalls.Other-before.Syscalls.Other, min(count, 1000)+100
		if calls < min(count, 1000)-100 || calls > most {
			t.Errorf("%d calls of none of our numbers", calls)
		}
	}
}

// A sidecar that is killed leaves a plugin that was stopped at a limit stopped,
// and one that was refused refused.
func TestKilledSidecarsLimits(t *testing.T) {
	needKernel(t)
	for _, action := range []Action{ActionDeny, ActionStop} {
		t.Run(action.String(), func(t *testing.T) {
			dir := publicDir(t)
			state, out := filepath.Join(dir, "state"), filepath.Join(dir, "out")
			if err := os.Mkdir(state, 0o700); err != nil {
				t.Fatal(err)
			}
			command := exec.Command("/proc/self/exe", state, out, action.String())
			command.Args[0] = sidecarName
			command.Stderr = os.Stderr
			stdout, err := command.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := command.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := Detach(state, true); err != nil {
					t.Error(err)
				}
			})
			var left doomed
			if err := json.NewDecoder(stdout).Decode(&left); err != nil {
				t.Fatal(err)
			}
			const permitted = doomedLimit
			awaitLines(t, out, 0, permitted-1)
			time.Sleep(200 * time.Millisecond)
			if err := command.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = command.Wait()
			text, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			if n := bytes.Count(text, []byte("ok\n")); n > permitted || n < permitted-1 {
				t.Errorf("%d connects of %d", n, permitted)
			}
			from := bytes.Count(text, []byte("\n"))
			if action == ActionDeny {
				for _, line := range awaitLines(t, out, from+1, 50) {
					if line != "EPERM" {
						t.Fatalf("with the sidecar gone, connect ended with %s", line)
					}
				}
				return
			}
			time.Sleep(300 * time.Millisecond)
			if text, err = os.ReadFile(out); err != nil || bytes.Count(text, []byte("\n")) != from {
				t.Errorf("it goes on, %v: %s", err, text)
			}
			if err := unix.Kill(left.PID, 0); err != nil || zombie(left.PID) {
				t.Errorf("it does not live: %v", err)
			}
		})
	}
}
