package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Need is something of the machine that a test cannot do without.
type Need struct {
	what string
	// absent returns why the machine provably lacks it, nil if it has it.
	absent func() error
}

// Require skips the test when the machine lacks one of needs, and prints it and
// the reason. With CHAPERONE_REQUIRE=1 in the environment, as in CI, the test
// fails instead: no test may be skipped there.
//
// A need that is there but does not work skips nothing: the test runs, and
// shows what is wrong.
func Require(t testing.TB, needs ...Need) {
	t.Helper()
	if missing := Missing(needs...); missing != nil {
		if os.Getenv("CHAPERONE_REQUIRE") == "1" {
			t.Fatalf("CHAPERONE_REQUIRE=1, but this machine lacks %v", missing)
		}
		t.Skipf("this machine lacks %v", missing)
	}
}

// Missing returns what of needs the machine lacks and why, nil if nothing.
func Missing(needs ...Need) error {
	var missing []error
	for _, need := range needs {
		if err := need.absent(); err != nil {
			missing = append(missing, fmt.Errorf("%s: %w", need.what, err))
		}
	}
	return errors.Join(missing...)
}

// Superuser needs an effective user id of 0.
func Superuser() Need {
	return Need{"root", func() error {
		if uid := os.Geteuid(); uid != 0 {
			return fmt.Errorf("the effective user id is %d", uid)
		}
		return nil
	}}
}

// CgroupV2 needs a cgroup v2 hierarchy in which a cgroup can be made.
func CgroupV2() Need {
	return Need{"cgroup v2", func() error {
		root, err := CgroupRoot()
		if err != nil {
			return err
		}
		if err := unix.Access(root, unix.W_OK); err != nil {
			return fmt.Errorf("write %s: %w", root, err)
		}
		return nil
	}}
}

// BTF needs the kernel's type information, which the eBPF programs read.
func BTF() Need {
	return Need{"kernel type information (BTF)", func() error {
		_, err := os.Stat("/sys/kernel/btf/vmlinux")
		return err
	}}
}

// Program needs a program in PATH, such as curl or python3.
func Program(name string) Need {
	return Need{name, func() error {
		_, err := exec.LookPath(name)
		return err
	}}
}

// File needs a file or folder, such as one of a package without a program.
func File(path string) Need {
	return Need{path, func() error {
		_, err := os.Stat(path)
		return err
	}}
}

// PostgreSQL needs the programs of a PostgreSQL server.
func PostgreSQL() Need {
	return Need{"PostgreSQL", func() error {
		_, err := PostgreSQLBin()
		return err
	}}
}

// VaultServer needs a Vault, which is built if the cache does not have it.
func VaultServer() Need {
	return Need{"Vault", func() error {
		_, err := BuildVault(context.Background(), nil)
		return err
	}}
}

// CgroupRoot returns where the cgroup v2 hierarchy is mounted.
func CgroupRoot() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) > 2 && fields[2] == "cgroup2" {
			return fields[1], nil
		}
	}
	return "", errors.New("no cgroup2 file system is mounted")
}
