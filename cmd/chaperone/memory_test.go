package main

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// TestStandInOfARun has a plugin use what is in its environment as a client
// library does: in the credential's place it is replaced, elsewhere refused, and
// nothing that the sidecar writes holds it.
func TestStandInOfARun(t *testing.T) {
	w := newEnv(t, "off", "    placeholder: {env: WEATHER_API_KEY, like: \"wk_{32}\"}\n")
	script := fmt.Sprintf(`echo "has $WEATHER_API_KEY"
curl -s -H "Authorization: Bearer $WEATHER_API_KEY" %[1]s; echo
curl -s -H "X-Leak: $WEATHER_API_KEY" %[1]s; echo
curl -s -X POST -d "$WEATHER_API_KEY" %[1]s; echo
curl -s "%[1]s?key=$WEATHER_API_KEY"; echo`, w.URL("/echo"))
	r := w.Run("sh", "-c", script)
	value := regexp.MustCompile(`has (wk_[A-Za-z0-9]{32})`).FindStringSubmatch(r.Stdout)
	if value == nil || strings.Count(r.Stdout, "credential_misplaced") < 3 {
		t.Fatalf("the plugin saw:\n%s%s", r.Stdout, r.Stderr)
	}
	received := w.API.Requests()
	if len(received) == 0 || received[0].Header.Get("Authorization") != "Bearer "+w.API.Token() {
		t.Error("the API did not receive the credential in its place")
	}
	if all := fmt.Sprint(received); strings.Contains(all, value[1]) {
		t.Errorf("got the placeholder at the API: %s", all)
	}
	log := w.Read("state/audit.jsonl") + r.Stderr
	for _, secret := range []string{value[1], w.API.Token()} {
		if strings.Contains(log, secret) {
			t.Errorf("%s is in what the sidecar wrote", secret)
		}
	}
	scenario.Contains(t, log, "credential_misplaced")
	if _, err := os.Stat(w.File("state/" + "placeholders.env")); err == nil {
		t.Error("it is in a file, though the sidecar started the plugin")
	}
}

// TestMemoryIsHidden looks at a sidecar of an ordinary user, whose files in
// /proc are root's when nobody of its user may look into it. It serves beside a
// plugin that another program starts, with the placeholder from its file.
func TestMemoryIsHidden(t *testing.T) {
	testenv.Require(t, testenv.Superuser())
	w := newEnv(t, "off", "    placeholder: {env: WEATHER_API_KEY, like: \"wk_{32}\"}\n")
	const nobody = 65534
	testenv.Must(t, os.Chown(w.Dir, nobody, nobody))
	for _, e := range testenv.MustGet(os.ReadDir(w.Dir))(t) {
		testenv.Must(t, os.Chown(w.File(e.Name()), nobody, nobody))
	}
	w.Write("token", "0123456789abcdef")
	testenv.Must(t, os.Chown(w.File("token"), nobody, nobody))
	cmd := w.Command("serve", "--config", w.File("sidecar.yaml"), "--proxy-token-file", w.File("token"), "--log-level", "error")
	program := w.File("chaperone") // where that user may run it
	testenv.Must(t, exec.Command("cp", cmd.Path, program).Run())
	testenv.Must(t, os.Chmod(program, 0o755))
	cmd.Path = program
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	w.StartProcess(cmd)
	w.Ready()
	if !regexp.MustCompile(`^WEATHER_API_KEY=wk_[A-Za-z0-9]{32}\n$`).MatchString(w.Read("state/" + "placeholders.env")) {
		t.Error("got no file with the placeholder for the program that starts the plugin")
	}
	pid := cmd.Process.Pid
	if owner := testenv.MustGet(os.Stat(fmt.Sprintf("/proc/%d/mem", pid)))(t).Sys().(*syscall.Stat_t).Uid; owner != 0 {
		t.Errorf("/proc/%d/mem is of user %d", pid, owner)
	}
	scenario.Contains(t, string(testenv.MustGet(os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid)))(t)), "Max core file size        1 ")
	look := exec.Command("sh", "-c", fmt.Sprintf("head -c 1 /proc/%d/environ", pid))
	look.SysProcAttr = cmd.SysProcAttr
	if out, err := look.CombinedOutput(); err == nil {
		t.Errorf("another process of its user reads its environment: %q", out)
	}
}

// TestLockedMemory keeps the memory from being swapped out.
func TestLockedMemory(t *testing.T) {
	testenv.Require(t, testenv.Superuser())
	w := newEnv(t, "off", "")
	b := w.StartCommand("run", "--mlock", "--config", w.File("sidecar.yaml"), "--", "sleep", "60")
	w.Ready()
	time.Sleep(50 * time.Millisecond)
	status := string(testenv.MustGet(os.ReadFile(fmt.Sprintf("/proc/%d/status", b.Cmd.Process.Pid)))(t))
	if locked := regexp.MustCompile(`VmLck:\s+(\d+) kB`).FindStringSubmatch(status); locked == nil || locked[1] == "0" {
		t.Errorf("locked: %v", locked)
	}
}
