package configs

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// mostExposed is the exposure, from 0 to 10, that systemd may find in the unit:
// what is left is what confining a plugin takes, its capabilities above all.
const mostExposed = 5.5

// TestSystemd has systemd read the unit, and judge how much of the machine is
// exposed to it.
func TestSystemd(t *testing.T) {
	testenv.Require(t, testenv.Program("systemd-analyze"))
	unit, err := os.ReadFile("systemd/chaperone@.service")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	analyze := func(unit string, args ...string) string {
		t.Helper()
		dir := t.TempDir()
		for _, name := range []string{"chaperone@.service", "chaperone@weather.service"} {
			write(t, filepath.Join(dir, name), strings.ReplaceAll(unit, "/usr/bin/chaperone", program))
		}
		command := exec.Command("systemd-analyze", append(args, filepath.Join(dir, "chaperone@weather.service"))...)
		var out bytes.Buffer
		command.Stdout, command.Stderr = &out, &out
		if err := command.Run(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, &out)
		}
		return strings.TrimSpace(out.String())
	}
	// systemd ignores unknown settings: it prints them, and succeeds.
	if out := analyze(string(unit), "verify", "--man=no"); out != "" {
		t.Errorf("systemd says of the unit:\n%s", out)
	}
	if out := analyze(strings.Replace(string(unit), "\nDelegate=", "\nDelegates=", 1), "verify", "--man=no"); !strings.Contains(out, "Delegates") {
		t.Errorf("systemd says nothing of a key that it does not know: %q", out)
	}
	out := analyze(string(unit), "security", "--offline=true", "--no-pager")
	_, level, _ := strings.Cut(out, "Overall exposure level for chaperone@weather.service: ")
	level, _, _ = strings.Cut(level, " ")
	if exposed, err := strconv.ParseFloat(level, 64); err != nil || exposed > mostExposed {
		t.Errorf("the exposure is %q, at most %.1f is wanted:\n%s", level, mostExposed, out)
	}
}
