package audit_test

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/chaperone-proxy/chaperone/audit"
)

// leaks reports whether printing value shows any run of the key's bytes.
func leaks(format string, value any, key []byte) bool {
	printed := fmt.Sprintf(format, value)
	raw, err := hex.DecodeString(strings.TrimSpace(string(key)))
	if err != nil {
		return true
	}
	numbers := strings.Trim(fmt.Sprint(raw[:4]), "[]")
	return strings.Contains(printed, string(key[:8])) || strings.Contains(printed, numbers) ||
		strings.Contains(printed, fmt.Sprintf("%#x, %#x, %#x", raw[0], raw[1], raw[2]))
}

func hmacOf(t *testing.T, key []byte, body string) string {
	t.Helper()
	raw, err := hex.DecodeString(string(key))
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, raw)
	mac.Write([]byte(body))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// envWriter makes the test binary a program that writes records into the
// folder that it names, until it is killed.
const envWriter = "AUDIT_TEST_WRITER"

// writeUntilKilled prints the number of each record, and of the last of several
// that are written together, once they have been.
func writeUntilKilled(dir string) int {
	log, err := audit.Open(audit.Config{StateDir: dir, MaxSize: 64 << 10, Keep: 3})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for n := 1; ; n++ {
		if err := log.RecordAll(samples(1 + n%3)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Println(log.Status().Seq)
	}
}

// killWriter runs a writer, kills it once it has written some records, and
// returns the last number that it printed.
func killWriter(t *testing.T, dir string, some int) (last uint64) {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), binary)
	command.Env = []string{envWriter + "=" + dir}
	command.Stderr = os.Stderr
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for n := 0; lines.Scan(); n++ {
		if n == some {
			if err := command.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		var seq uint64
		if _, err := fmt.Sscan(lines.Text(), &seq); err == nil && strings.HasSuffix(lines.Text(), fmt.Sprint(seq)) {
			last = max(last, seq)
		}
	}
	_ = command.Wait() // it was killed
	return last
}

// tinyDisk mounts a file system of the given size, and unmounts it when the
// test ends.
func tinyDisk(t *testing.T, size string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size)
	if err != nil && os.Geteuid() != 0 && os.Getenv("CHAPERONE_REQUIRE") != "1" {
		t.Skip("needs root to mount a small disk:", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}
